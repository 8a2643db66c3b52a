#include "linear.h"

#include <type_traits>

#include "bindings.h"

namespace fastseq {
namespace {

template <typename T>
void product(const Array<T>& a, const StridedArray<T>& b, const OptionalArray<T>& bias, Array<T>& out, bool bfloat16,
             Threads threads) {
    check_shape(a, "a", {-1, -1});
    check_shape(b, "b", {-1, a.shape(1)});
    check_shape(out, "out", {a.shape(0), b.shape(0)});
    constexpr int64_t size = sizeof(T);
    for (int axis = 0; axis < 2; ++axis)
        if (b.strides(axis) % size != 0)
            throw py::value_error("b has a stride of " + std::to_string(b.strides(axis)) + " bytes, expected whole elements");
    const Product<T> p{a.data(), a.shape(1), {b.data(), b.strides(0) / size, b.strides(1) / size},
                       optional_data(bias, "bias", {b.shape(0)}), out.mutable_data(), a.shape(0), b.shape(0), a.shape(1),
                       threads};
    if (p.rows == 0 || p.columns == 0) return;
    py::gil_scoped_release release;
    if constexpr (std::is_same_v<T, double>)
        product_f64(p);
    else if (bfloat16)
        product_bf16(p);
    else
        product_f32(p);
}

template <typename T>
void transposed_product(const Array<T>& a, const Array<T>& b, Array<T>& out, bool bfloat16, Threads threads) {
    check_shape(a, "a", {-1, -1});
    check_shape(b, "b", {a.shape(0), -1});
    check_shape(out, "out", {a.shape(1), b.shape(1)});
    const TransposedProduct<T> p{a.data(), b.data(), out.mutable_data(), a.shape(1), b.shape(1), a.shape(0), threads};
    if (p.rows == 0 || p.columns == 0) return;
    py::gil_scoped_release release;
    if constexpr (std::is_same_v<T, double>)
        transposed_product_f64(p);
    else if (bfloat16)
        transposed_product_bf16(p);
    else
        transposed_product_f32(p);
}

}  // namespace

void bind_linear(py::module_& m) {
    define(m, "product", {"a", "b", "bias", "out", "bfloat16", "threads"},
           "out = a bᵀ + bias; bfloat16: operands are rounded to it", &product<float>, &product<double>);
    define(m, "transposed_product", {"a", "b", "out", "bfloat16", "threads"},
           "out = aᵀ b; bfloat16: operands are rounded to it", &transposed_product<float>,
           &transposed_product<double>);
}

}  // namespace fastseq
