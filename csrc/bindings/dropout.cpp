#include "dropout.h"

#include "bindings.h"

namespace fastseq {

template <typename T, typename Kernel>
void call(Kernel kernel, const Array<T>& x, Array<T>& y, double p, int64_t seed, int64_t step, uint32_t site,
          int threads) {
    check_shape(x, "x", {-1, -1});
    check_shape(y, "y", {x.shape(0), x.shape(1)});
    const uint32_t threshold = dropout_threshold(p);
    const T* in = x.data();
    T* out = y.mutable_data();
    const int64_t rows = x.shape(0), columns = x.shape(1);
    const Rng rng(seed, step);
    py::gil_scoped_release release;
    kernel(in, out, rows, columns, static_cast<T>(1.0 / (1.0 - p)), threshold, rng, site, threads);
}

void bind_dropout(py::module_& m) {
    m.def(
        "dropout",
        [](const Array<float>& x, Array<float>& y, double p, int64_t seed, int64_t step, uint32_t site, int threads) {
            call<float>([](auto&&... a) { dropout_f32(a...); }, x, y, p, seed, step, site, threads);
        },
        py::arg("x").noconvert(), py::arg("y").noconvert(), py::arg("p"), py::arg("seed"), py::arg("step"),
        py::arg("site"), py::arg("threads"), "y[r, c] = 0 where dropped, else x[r, c] / (1 - p)");
    m.def(
        "dropout",
        [](const Array<double>& x, Array<double>& y, double p, int64_t seed, int64_t step, uint32_t site,
           int threads) {
            call<double>([](auto&&... a) { dropout_f64(a...); }, x, y, p, seed, step, site, threads);
        },
        py::arg("x").noconvert(), py::arg("y").noconvert(), py::arg("p"), py::arg("seed"), py::arg("step"),
        py::arg("site"), py::arg("threads"));
}

}  // namespace fastseq
