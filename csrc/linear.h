#pragma once

#include "isa.h"

namespace fastseq {

// An element (i, j) of a matrix at data[i * row + j * column].
template <typename T>
struct Matrix {
    const T* data;
    int64_t row, column;
};

// out [rows, columns] = a bᵀ + bias: a [rows, depth] with adjacent columns, b [columns, depth] of any strides,
// bias [columns] or null.
template <typename T>
struct Product {
    const T* a;
    int64_t a_row;
    Matrix<T> b;
    const T* bias;
    T* out;
    int64_t rows, columns, depth;
    int threads;
};

// out [rows, columns] = aᵀ b for a [depth, rows] and b [depth, columns]: the gradient of a weight.
template <typename T>
struct TransposedProduct {
    const T *a, *b;
    T* out;
    int64_t rows, columns, depth;
    int threads;
};

// The bits of a result do not depend on the number of threads. *_bf16: operands rounded to bfloat16, sums in float.
FASTSEQ_KERNEL(void, product_f32, (const Product<float>& a))
FASTSEQ_KERNEL(void, product_bf16, (const Product<float>& a))
FASTSEQ_KERNEL(void, product_f64, (const Product<double>& a))
FASTSEQ_KERNEL(void, transposed_product_f32, (const TransposedProduct<float>& a))
FASTSEQ_KERNEL(void, transposed_product_bf16, (const TransposedProduct<float>& a))
FASTSEQ_KERNEL(void, transposed_product_f64, (const TransposedProduct<double>& a))

}  // namespace fastseq
