// Layer normalisation of one row (Ba, Kiros, Hinton, "Layer Normalization", 2016), shared by the ops that end in one.
#pragma once

#include <cmath>
#include <cstdint>

#include "elementary.h"

namespace fastseq {

// Row blocks for parameter gradients: each block sums its rows in order and the blocks are added in order, so the
// result depends on the number of rows alone, never on the threads.
constexpr int64_t kMaxBlocks = 64, kMinBlockRows = 32;

static inline int64_t block_rows(int64_t rows) {
    const int64_t size = (rows + kMaxBlocks - 1) / kMaxBlocks;
    return size < kMinBlockRows ? kMinBlockRows : size;
}

static inline int64_t block_count(int64_t rows) { return (rows + block_rows(rows) - 1) / block_rows(rows); }

// total[c] = sum of partial[block * stride + c] over the blocks, for c < width.
template <typename T>
FASTSEQ_INLINE void add_blocks(const T* partial, int64_t blocks, int64_t stride, T* total, int64_t width) {
    for (int64_t c = 0; c < width; ++c) total[c] = T(0);
    for (int64_t block = 0; block < blocks; ++block)
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) total[c] += partial[block * stride + c];
}

// x, whose elements sum to `sum`, becomes (x - mean) / sqrt(variance + eps) * weight + bias.
template <typename T>
FASTSEQ_INLINE void normalize(T* x, int64_t width, T sum, T eps, const T* weight, const T* bias, T* mean, T* rstd) {
    const T m = sum / static_cast<T>(width);
    // What rounding left in the mean, which counts where it is large beside the deviation.
    T square = T(0), rest = T(0);
#pragma omp simd reduction(+ : square, rest)
    for (int64_t c = 0; c < width; ++c) {
        square += (x[c] - m) * (x[c] - m);
        rest += x[c] - m;
    }
    const T d = rest / static_cast<T>(width);
    square -= rest * d;
    square = square < T(0) ? T(0) : square;  // a NaN stays
    const T r = T(1) / std::sqrt(square / static_cast<T>(width) + eps);
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) x[c] = ((x[c] - m) - d) * r * weight[c] + bias[c];
    *mean = m + d;
    *rstd = r;
}

}  // namespace fastseq
