#include "dropout.h"

#include "bindings.h"

namespace fastseq {
namespace {

template <typename T>
void forward(const Array<T>& x, Array<T>& y, double p, int64_t seed, int64_t step, uint32_t site, Threads threads) {
    check_shape(x, "x", {-1, -1});
    check_shape(y, "y", {x.shape(0), x.shape(1)});
    const Dropout drawn = make_dropout(p, seed, step, site);
    const T* in = x.data();
    T* out = y.mutable_data();
    const int64_t rows = x.shape(0), columns = x.shape(1);
    py::gil_scoped_release release;
    dropout(in, out, rows, columns, drawn, threads);
}

}  // namespace

void bind_dropout(py::module_& m) {
    define(m, "dropout", {"x", "y", "p", "seed", "step", "site", "threads"},
           "y[r, c] = 0 where dropped, else x[r, c] times the scale", &forward<float>, &forward<double>);
    define(m, "philox", {"seed", "step", "c0", "c1", "c3"}, "The four words of one counter (fastseq/ops/philox.py).",
           [](int64_t seed, int64_t step, uint32_t c0, uint32_t c1, uint32_t c3) {
               uint32_t c[4] = {c0, c1, static_cast<uint32_t>(static_cast<uint64_t>(step)), c3};
               philox(Rng(seed, step), c);
               return py::make_tuple(c[0], c[1], c[2], c[3]);
           });
}

}  // namespace fastseq
