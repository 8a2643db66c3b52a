// Philox-4x32-10 for many rows at once: one block of four columns for each of 16 consecutive rows, the shape that a
// kernel with one row per vector lane wants. The words of philox_group (philox.h), in a third of its time with
// AVX-512 and half with AVX2: every 32-bit word lives in a 64-bit lane, so that a round is two widening products, two
// shifts and two exclusive ors.
#pragma once

#include <cstring>

#include "philox.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fastseq::FASTSEQ_ISA {

constexpr int kPhiloxRows = 16;

namespace lanes {

// multiply(): products of the low halves of the lanes. By intrinsics where there are some, because the plain
// expression becomes the several times slower 64 x 64 bit product.
#if defined(__AVX512F__)
typedef uint64_t Words __attribute__((vector_size(64)));
static inline Words multiply(Words a, uint64_t b) {
    return (Words)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)(Words{} + b));
}
#elif defined(__AVX2__)
typedef uint64_t Words __attribute__((vector_size(32)));
static inline Words multiply(Words a, uint64_t b) {
    return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)(Words{} + b));
}
#elif defined(__SSE2__)
typedef uint64_t Words __attribute__((vector_size(16)));
static inline Words multiply(Words a, uint64_t b) {
    return (Words)_mm_mul_epu32((__m128i)a, (__m128i)(Words{} + b));
}
#else
typedef uint64_t Words __attribute__((vector_size(16)));
static inline Words multiply(Words a, uint64_t b) { return (a & 0xffffffffu) * b; }
#endif

constexpr int kWidth = sizeof(Words) / sizeof(uint64_t);
constexpr int kVectors = kPhiloxRows / kWidth;

}  // namespace lanes

// words[j][i] belongs to column 4 * block + j of row `row + i`: output j of the block with counter
// (block, row + i, step, site).
static inline void philox_rows(const Rng& rng, uint32_t block, uint32_t row, uint32_t site,
                               uint32_t words[4][kPhiloxRows]) {
    using namespace lanes;
    Words x0[kVectors], x1[kVectors], x2[kVectors], x3[kVectors];
    alignas(64) uint64_t rows[kPhiloxRows];
    for (int i = 0; i < kPhiloxRows; ++i) rows[i] = row + static_cast<uint32_t>(i);
    for (int v = 0; v < kVectors; ++v) {
        std::memcpy(&x1[v], rows + v * kWidth, sizeof(Words));
        x0[v] = Words{} + block;
        x2[v] = Words{} + rng.step;
        x3[v] = Words{} + site;
    }
    uint32_t k0 = rng.key0, k1 = rng.key1;
    for (int round = 0; round < 10; ++round) {
        for (int v = 0; v < kVectors; ++v) {  // the upper halves carry rubbish, which multiply() ignores
            const Words p0 = multiply(x0[v], kPhiloxM0), p1 = multiply(x2[v], kPhiloxM1);
            x0[v] = (p1 >> 32) ^ x1[v] ^ k0;
            x1[v] = p1;
            x2[v] = (p0 >> 32) ^ x3[v] ^ k1;
            x3[v] = p0;
        }
        k0 += kPhiloxW0;
        k1 += kPhiloxW1;
    }
    for (int v = 0; v < kVectors; ++v)
        for (int i = 0; i < kWidth; ++i) {
            words[0][v * kWidth + i] = static_cast<uint32_t>(x0[v][i]);
            words[1][v * kWidth + i] = static_cast<uint32_t>(x1[v][i]);
            words[2][v * kWidth + i] = static_cast<uint32_t>(x2[v][i]);
            words[3][v * kWidth + i] = static_cast<uint32_t>(x3[v][i]);
        }
}

}  // namespace fastseq::FASTSEQ_ISA
