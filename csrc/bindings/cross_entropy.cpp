#include "cross_entropy.h"

#include <type_traits>

#include "bindings.h"

namespace fastseq {
namespace {

template <typename T>
void cross_entropy(const Array<T>& h, const Array<T>& weight, const OptionalArray<T>& bias,
                   const Array<int64_t>& targets, int64_t ignore_index, std::optional<double> softcap,
                   const OptionalArray<T>& upstream, Array<T>& loss, Array<T>& lse, OptionalArray<T>& dh,
                   OptionalArray<T>& dweight, OptionalArray<T>& dbias, bool bfloat16, Threads threads) {
    check_shape(h, "h", {-1, -1});
    check_shape(weight, "weight", {-1, h.shape(1)});
    const int64_t rows = h.shape(0), classes = weight.shape(0), width = h.shape(1);
    check_shapes({rows}, targets, "targets", loss, "loss", lse, "lse");
    if (dh.has_value() != dweight.has_value() || (dbias.has_value() && !(dh.has_value() && bias.has_value())))
        throw py::value_error("dh and dweight are asked for together, dbias with them where there is a bias");
    if (softcap && !(*softcap > 0.0)) throw py::value_error("softcap must be above 0");
    check_number("weight.shape[0]", classes, rows > 0 ? 1 : 0, INT32_MAX);
    check_number("ignore_index", ignore_index, -INT32_MAX);  // what is subtracted from it must not overflow
    const int64_t* target = targets.data();
    for (int64_t row = 0; row < rows; ++row)
        if (target[row] != ignore_index) check_range("targets", row, target[row], classes);
    const CrossEntropy<T> a{h.data(), weight.data(), optional_data(bias, "bias", {classes}), target, ignore_index,
                            static_cast<T>(softcap.value_or(0.0)), optional_data(upstream, "upstream", {rows}),
                            loss.mutable_data(), lse.mutable_data(), optional_data(dh, "dh", {rows, width}),
                            optional_data(dweight, "dweight", {classes, width}),
                            optional_data(dbias, "dbias", {classes}), rows, classes, width, threads};
    py::gil_scoped_release release;
    if constexpr (std::is_same_v<T, double>)
        cross_entropy_f64(a);
    else if (bfloat16)
        cross_entropy_bf16(a);
    else
        cross_entropy_f32(a);
}

}  // namespace

void bind_cross_entropy(py::module_& m) {
    define(m, "cross_entropy",
           {"h", "weight", "bias", "targets", "ignore_index", "softcap", "upstream", "loss", "lse", "dh", "dweight",
            "dbias", "bfloat16", "threads"},
           "Losses and log-sum-exps of all rows and, unless None, the gradients of the sum of upstream (None: 1) * loss",
           &cross_entropy<float>, &cross_entropy<double>);
}

}  // namespace fastseq
