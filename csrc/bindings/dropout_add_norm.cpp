#include "dropout_add_norm.h"

#include "bindings.h"
#include "norm.h"

namespace fastseq {
namespace {

template <typename T>
void forward(const Array<T>& x, const Array<T>& residual, const Array<T>& weight, const Array<T>& bias,
             const OptionalArray<T>& x_bias, Array<T>& y, Array<T>& mean, Array<T>& rstd, double eps, double p,
             int64_t seed, int64_t step, uint32_t site, Threads threads) {
    check_shape(x, "x", {-1, -1});
    const int64_t rows = x.shape(0), width = x.shape(1);
    check_shapes({rows, width}, residual, "residual", y, "y");
    check_shapes({width}, weight, "weight", bias, "bias");
    check_shapes({rows}, mean, "mean", rstd, "rstd");
    const DropoutAddNorm<T> a{x.data(), residual.data(), weight.data(), bias.data(),
                              optional_data(x_bias, "x_bias", {width}), y.mutable_data(), mean.mutable_data(),
                              rstd.mutable_data(), rows, width, static_cast<T>(eps),
                              make_dropout(p, seed, step, site), threads};
    py::gil_scoped_release release;
    dropout_add_norm(a);
}

template <typename T>
void backward(const Array<T>& grad, const Array<T>& x, const Array<T>& residual, const Array<T>& weight,
              const OptionalArray<T>& x_bias, const Array<T>& mean, const Array<T>& rstd, Array<T>& dx,
              Array<T>& dresidual, Array<T>& dweight, Array<T>& dbias, OptionalArray<T>& dx_bias, double p,
              int64_t seed, int64_t step, uint32_t site, Threads threads) {
    check_shape(x, "x", {-1, -1});
    const int64_t rows = x.shape(0), width = x.shape(1);
    check_shapes({rows, width}, grad, "grad", residual, "residual", dx, "dx", dresidual, "dresidual");
    check_shapes({width}, weight, "weight", dweight, "dweight", dbias, "dbias");
    check_shapes({rows}, mean, "mean", rstd, "rstd");
    Array<T> partial(block_count(rows) * 3 * width);
    const DropoutAddNormBackward<T> a{grad.data(), x.data(), residual.data(), weight.data(),
                                      optional_data(x_bias, "x_bias", {width}), mean.data(), rstd.data(),
                                      dx.mutable_data(), dresidual.mutable_data(), dweight.mutable_data(),
                                      dbias.mutable_data(), optional_data(dx_bias, "dx_bias", {width}),
                                      partial.mutable_data(), rows, width, make_dropout(p, seed, step, site),
                                      threads};
    py::gil_scoped_release release;
    dropout_add_norm_backward(a);
}

}  // namespace

void bind_dropout_add_norm(py::module_& m) {
    define(m, "dropout_add_norm",
           {"x", "residual", "weight", "bias", "x_bias", "y", "mean", "rstd", "eps", "p", "seed", "step", "site",
            "threads"},
           "y = LayerNorm(residual + dropout(x + x_bias)), with the mean and 1 / standard deviation of every row",
           &forward<float>, &forward<double>);
    define(m, "dropout_add_norm_backward",
           {"grad", "x", "residual", "weight", "x_bias", "mean", "rstd", "dx", "dresidual", "dweight", "dbias",
            "dx_bias", "p", "seed", "step", "site", "threads"},
           "The gradients of every input from grad, the upstream gradient of y", &backward<float>, &backward<double>);
}

}  // namespace fastseq
