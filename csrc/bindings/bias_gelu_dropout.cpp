#include "bias_gelu_dropout.h"

#include "bindings.h"
#include "norm.h"

namespace fastseq {
namespace {

template <typename T>
void forward(const Array<T>& x, const Array<T>& bias, Array<T>& y, double p, int64_t seed, int64_t step,
             uint32_t site, Threads threads) {
    check_shape(x, "x", {-1, -1});
    check_shape(bias, "bias", {x.shape(1)});
    check_shape(y, "y", {x.shape(0), x.shape(1)});
    const BiasGeluDropout<T> a{x.data(),   bias.data(), y.mutable_data(),
                               x.shape(0), x.shape(1),  make_dropout(p, seed, step, site), threads};
    py::gil_scoped_release release;
    bias_gelu_dropout(a);
}

template <typename T>
void backward(const Array<T>& grad, const Array<T>& x, const Array<T>& bias, Array<T>& dx, Array<T>& dbias, double p,
              int64_t seed, int64_t step, uint32_t site, Threads threads) {
    check_shape(x, "x", {-1, -1});
    const int64_t rows = x.shape(0), width = x.shape(1);
    check_shapes({rows, width}, grad, "grad", dx, "dx");
    check_shapes({width}, bias, "bias", dbias, "dbias");
    Array<T> partial(block_count(rows) * width);
    const BiasGeluDropoutBackward<T> a{grad.data(), x.data(), bias.data(), dx.mutable_data(), dbias.mutable_data(),
                                       partial.mutable_data(), rows, width, make_dropout(p, seed, step, site),
                                       threads};
    py::gil_scoped_release release;
    bias_gelu_dropout_backward(a);
}

}  // namespace

void bind_bias_gelu_dropout(py::module_& m) {
    define(m, "bias_gelu_dropout", {"x", "bias", "y", "p", "seed", "step", "site", "threads"},
           "y = dropout(gelu(x + bias))", &forward<float>, &forward<double>);
    define(m, "bias_gelu_dropout_backward",
           {"grad", "x", "bias", "dx", "dbias", "p", "seed", "step", "site", "threads"},
           "dx and dbias from grad, the upstream gradient of y", &backward<float>, &backward<double>);
}

}  // namespace fastseq
