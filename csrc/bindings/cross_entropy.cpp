#include "cross_entropy.h"

#include <type_traits>

#include "bindings.h"

namespace fastseq {
namespace {

template <typename T>
CrossEntropyTile<T> tile_of(Array<T>& logits, const Array<int64_t>& targets, int64_t first, int threads) {
    check_shape(logits, "logits", {-1, -1});
    check_shape(targets, "targets", {logits.shape(0)});
    return {logits.mutable_data(), targets.data(), logits.shape(0), logits.shape(1), first, threads};
}

template <typename T>
void forward(Array<T>& logits, const Array<int64_t>& targets, int64_t first, Array<T>& maximum, Array<T>& sum,
             Array<T>& target_logit, int threads) {
    const CrossEntropyTile<T> a = tile_of(logits, targets, first, threads);
    check_shape(maximum, "maximum", {a.rows});
    check_shape(sum, "sum", {a.rows});
    check_shape(target_logit, "target_logit", {a.rows});
    T *m = maximum.mutable_data(), *s = sum.mutable_data(), *t = target_logit.mutable_data();
    py::gil_scoped_release release;
    if constexpr (std::is_same_v<T, float>)
        cross_entropy_tile_f32(a, m, s, t);
    else
        cross_entropy_tile_f64(a, m, s, t);
}

template <typename T>
void backward(Array<T>& logits, const Array<int64_t>& targets, int64_t first, const Array<T>& lse,
              const Array<T>& grad, int threads) {
    const CrossEntropyTile<T> a = tile_of(logits, targets, first, threads);
    check_shape(lse, "lse", {a.rows});
    check_shape(grad, "grad", {a.rows});
    const T *l = lse.data(), *g = grad.data();
    py::gil_scoped_release release;
    if constexpr (std::is_same_v<T, float>)
        cross_entropy_tile_backward_f32(a, l, g);
    else
        cross_entropy_tile_backward_f64(a, l, g);
}

template <typename T>
void bind(py::module_& m) {
    m.def("cross_entropy_tile", &forward<T>, py::arg("logits").noconvert(), py::arg("targets").noconvert(),
          py::arg("first"), py::arg("maximum").noconvert(), py::arg("sum").noconvert(),
          py::arg("target_logit").noconvert(), py::arg("threads"),
          "Takes a tile of logits into the running maximum and sum of its rows");
    m.def("cross_entropy_tile_backward", &backward<T>, py::arg("logits").noconvert(), py::arg("targets").noconvert(),
          py::arg("first"), py::arg("lse").noconvert(), py::arg("grad").noconvert(), py::arg("threads"),
          "Turns a tile of logits into their gradients, in place");
}

void check_targets(const Array<int64_t>& targets, int64_t classes, int64_t ignore_index) {
    check_shape(targets, "targets", {-1});
    const int64_t* target = targets.data();
    for (int64_t row = 0; row < targets.shape(0); ++row)
        if (target[row] != ignore_index && (target[row] < 0 || target[row] >= classes))
            throw py::value_error("targets[" + std::to_string(row) + "] is " + std::to_string(target[row]) +
                                  ", expected 0 <= target < " + std::to_string(classes) +
                                  ", the rows of weight, or ignore_index (" + std::to_string(ignore_index) + ")");
}

}  // namespace

void bind_cross_entropy(py::module_& m) {
    bind<float>(m);
    bind<double>(m);
    m.def("check_targets", &check_targets, py::arg("targets").noconvert(), py::arg("classes"),
          py::arg("ignore_index"), "ValueError naming the first target that is neither a class nor ignore_index");
}

}  // namespace fastseq
