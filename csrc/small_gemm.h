// Products of small matrices that fit in cache, register-blocked: what BLAS is too heavy for.
//
// Written with the vector types that GCC and Clang share, because an accumulator tile in a plain array does not
// reliably stay in registers.
#pragma once

#include <cstdint>

#include "simd.h"

namespace fastseq::FASTSEQ_ISA {

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};

// Rows and columns of every product here come in multiples of these.
constexpr int kGemmRows = 8, kGemmColumns = 16;

// A matrix read element by element: element (i, j) is at data[i * row + j * column].
template <typename T>
struct Strided {
    const T* data;
    int64_t row, column;
};

// One tile of kTileRows x (N vectors) of C = A B, or C += A B.
template <typename T, int N>
static inline void gemm_tile(int64_t inner, Strided<T> a, const T* b, int64_t ldb, T* c, int64_t ldc, bool add) {
    using Vector = typename VectorOf<T>::type;
    constexpr int width = kVectorBytes / sizeof(T);
    Vector sum[kTileRows][N];
    for (int i = 0; i < kTileRows; ++i)
        for (int n = 0; n < N; ++n)
            sum[i][n] = add ? *reinterpret_cast<const Vector*>(c + i * ldc + n * width) : Vector{};
    for (int64_t k = 0; k < inner; ++k) {
        Vector row[N];
        for (int n = 0; n < N; ++n) row[n] = *reinterpret_cast<const Vector*>(b + k * ldb + n * width);
        for (int i = 0; i < kTileRows; ++i) {
            const T factor = a.data[i * a.row + k * a.column];
            for (int n = 0; n < N; ++n) sum[i][n] += factor * row[n];
        }
    }
    for (int i = 0; i < kTileRows; ++i)
        for (int n = 0; n < N; ++n) *reinterpret_cast<Vector*>(c + i * ldc + n * width) = sum[i][n];
}

// C [rows, columns] = A [rows, inner] B [inner, columns], or C += A B. Rows a multiple of 8, columns of 16.
// The order of the sums depends on nothing but `inner`.
template <typename T>
static inline void gemm(int64_t rows, int64_t columns, int64_t inner, Strided<T> a, const T* b, int64_t ldb, T* c,
                        int64_t ldc, bool add) {
    constexpr int width = kVectorBytes / sizeof(T);
    for (int64_t i = 0; i < rows; i += kTileRows) {
        const Strided<T> block{a.data + i * a.row, a.row, a.column};
        T* out = c + i * ldc;
        int64_t j = 0;
        for (; j + 2 * width <= columns; j += 2 * width) gemm_tile<T, 2>(inner, block, b + j, ldb, out + j, ldc, add);
        for (; j < columns; j += width) gemm_tile<T, 1>(inner, block, b + j, ldb, out + j, ldc, add);
    }
}

}  // namespace fastseq::FASTSEQ_ISA
