// The innermost loop of every large matrix product: a tile of sums that stays in registers.
//
// Written with the vector types that GCC and Clang share, because an accumulator tile in a plain array does not
// reliably stay in registers. With bfloat16 operands two values lie side by side in 32 bits, a pair along the depth,
// as the instruction takes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "bfloat16.h"
#include "elementary.h"
#include "simd.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace fastseq::FASTSEQ_ISA {

template <typename T>
struct Simd {
    typedef T Vector __attribute__((vector_size(kVectorBytes)));
    static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(T));
};

// The sum of the lanes, by halves that are registers themselves down to the smallest. Lanes are named one by one: a
// vector of which a half is read as memory would lie there from the start.
template <typename T, typename V, std::size_t... I>
FASTSEQ_INLINE T sum_of_lanes(const V& v, std::index_sequence<I...>) {
    constexpr std::size_t half = sizeof...(I);
    if constexpr (half == 1) {
        return v[0] + v[1];
    } else {
        typedef T Half __attribute__((vector_size(half * sizeof(T))));
        const Half low = {v[I]...}, high = {v[half + I]...};
        return sum_of_lanes<T>(low + high, std::make_index_sequence<half / 2>());
    }
}
template <typename T>
FASTSEQ_INLINE T sum_of_lanes(const typename Simd<T>::Vector& v) {
    return sum_of_lanes<T>(v, std::make_index_sequence<Simd<T>::lanes / 2>());
}

// Rows and vectors of columns of the tile: 24 of 32 registers hold sums with AVX-512, 12 of 16 without.
#if defined(__AVX512F__)
constexpr int kSumRows = 6, kSumVectors = 4;
#else
constexpr int kSumRows = 6, kSumVectors = 2;
#endif

// The same where the left operand is read along its columns: a tile of eight never straddles a cache line.
#ifdef __AVX512F__
constexpr int kColumnRows = 8, kColumnVectors = 2;
#else
constexpr int kColumnRows = kSumRows, kColumnVectors = kSumVectors;
#endif

// sums[r][c * lanes + l] = Σ_k rows[r][k * stride] * b[k * ldb + c * lanes + l]
template <int R, int C, typename T>
FASTSEQ_INLINE void product(const T* const* rows, int64_t stride, const T* b, int64_t ldb, int64_t depth, T* sums) {
    using Vector = typename Simd<T>::Vector;
    constexpr int lanes = Simd<T>::lanes;
    Vector sum[R][C] = {};
    for (int64_t k = 0; k < depth; ++k) {
        Vector column[C];
#pragma GCC unroll 8  // all the inner loops: only then do the arrays become registers
        for (int c = 0; c < C; ++c) __builtin_memcpy(&column[c], b + k * ldb + c * lanes, sizeof(Vector));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) sum[r][c] += rows[r][k * stride] * column[c];
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) __builtin_memcpy(sums + (r * C + c) * lanes, &sum[r][c], sizeof(Vector));
}

// The same with the number of rows, 1 ... R, known at run time.
template <int C, int R, typename T>
void product_of(int count, const T* const* rows, int64_t stride, const T* b, int64_t ldb, int64_t depth, T* sums) {
    if (count == R) return product<R, C>(rows, stride, b, ldb, depth, sums);
    if constexpr (R > 1) return product_of<C, R - 1>(count, rows, stride, b, ldb, depth, sums);
}

// The same for pairs of bfloat16, with float sums.
#ifdef __AVX512F__
template <int R, int C>
__attribute__((target("avx512bf16"))) void pair_product(const BFloat16Pair* const* rows, int64_t stride,
                                                        const BFloat16Pair* b, int64_t ldb, int64_t depth,
                                                        float* sums) {
    __m512 sum[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sum[r][c] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; ++k) {
        __m512i column[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) column[c] = _mm512_loadu_si512(b + k * ldb + c * 16);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const __m512i pair = _mm512_set1_epi32(static_cast<int>(rows[r][k * stride]));
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], (__m512bh)pair, (__m512bh)column[c]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) _mm512_storeu_ps(sums + (r * C + c) * 16, sum[r][c]);
}
#endif

// Without the instruction: both values of every pair as floats, whose products are exact; first all the low ones, so
// that no more registers are needed than for floats. Not inlined: where the compiler knows how the rows lie it makes
// vectors of their values and takes them apart again.
template <int R, int C>
void pair_product_in_float(const BFloat16Pair* const* rows, int64_t stride, const BFloat16Pair* b, int64_t ldb,
                           int64_t depth, float* sums) {
    using Vector = typename Simd<float>::Vector;
    typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
    constexpr int lanes = Simd<float>::lanes;
    Vector sum[R][C] = {};
    for (int64_t k = 0; k < depth; ++k) {
        Bits column[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) __builtin_memcpy(&column[c], b + k * ldb + c * lanes, sizeof(Bits));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const Bits pair = Bits{} + static_cast<uint32_t>(rows[r][k * stride]);  // unpacked as a vector, like column
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) sum[r][c] += (Vector)(pair << 16) * (Vector)(column[c] << 16);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const Bits pair = Bits{} + static_cast<uint32_t>(rows[r][k * stride]);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) sum[r][c] += (Vector)(pair & 0xffff0000u) * (Vector)(column[c] & 0xffff0000u);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) __builtin_memcpy(sums + (r * C + c) * lanes, &sum[r][c], sizeof(Vector));
}

template <int C, int R>
void product_of(int count, const BFloat16Pair* const* rows, int64_t stride, const BFloat16Pair* b, int64_t ldb,
                int64_t depth, float* sums) {
    if (count == R) {
#ifdef __AVX512F__
        if (has_bfloat16_products()) return pair_product<R, C>(rows, stride, b, ldb, depth, sums);
#endif
        return pair_product_in_float<R, C>(rows, stride, b, ldb, depth, sums);
    }
    if constexpr (R > 1) return product_of<C, R - 1>(count, rows, stride, b, ldb, depth, sums);
}

}  // namespace fastseq::FASTSEQ_ISA
