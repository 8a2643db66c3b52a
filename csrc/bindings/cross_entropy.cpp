#include "cross_entropy.h"

#include <type_traits>

#include "arguments.h"

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
    check_shape(targets, "targets", {rows});
    check_shape(loss, "loss", {rows});
    check_shape(lse, "lse", {rows});
    if (dh.has_value() != dweight.has_value() || (dbias.has_value() && !(dh.has_value() && bias.has_value())))
        throw py::value_error("dh and dweight are asked for together, dbias with them where there is a bias");
    if (softcap && !(*softcap > 0.0))
        throw py::value_error("softcap is " + std::to_string(*softcap) + ", expected a positive number or None");
    if (classes > INT32_MAX || (classes == 0 && rows > 0))
        throw py::value_error("weight has shape [" + std::to_string(classes) + ", " + std::to_string(width) +
                              "], expected 1 to 2^31 - 1 classes");
    if (ignore_index < -INT32_MAX)  // what is subtracted from it must not overflow
        throw py::value_error("ignore_index is " + std::to_string(ignore_index) + ", expected at least -2^31 + 1");
    const int64_t* target = targets.data();
    for (int64_t row = 0; row < rows; ++row)
        if (target[row] != ignore_index && (target[row] < 0 || target[row] >= classes))
            throw py::value_error("targets[" + std::to_string(row) + "] is " + std::to_string(target[row]) +
                                  ", expected 0 <= target < " + std::to_string(classes) +
                                  ", the rows of weight, or ignore_index (" + std::to_string(ignore_index) + ")");
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
