// Philox-4x32-10 for many blocks at once, each 32-bit word in a 64-bit lane, so that a round is two widening products,
// two shifts and two exclusive ors. The upper halves of the lanes carry rubbish, which the products ignore.
//
// philox_group: consecutive blocks of one row, the shape that an element-wise kernel wants.
// philox_rows: one block of each of 16 rows, the shape that a kernel with one row per vector lane wants.
#pragma once

#include <cstring>

#include "philox.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fastseq::FASTSEQ_ISA {

constexpr int kWords = 64;       // of philox_group: 16 blocks, where it is not asked for others
constexpr int kPhiloxRows = 16;  // rows of philox_rows

namespace lanes {

// multiply(): products of the low halves of the lanes. By intrinsics where there are some, because the plain
// expression becomes the several times slower 64 x 64 bit product.
// store(): the words of consecutive blocks in their order, from four vectors with one word of each block. Into void*:
// who reads them as 16-bit values has an array of those.
#if defined(__AVX512F__)
typedef uint64_t Words __attribute__((vector_size(64)));
static inline Words multiply(Words a, uint64_t b) {
    return (Words)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)(Words{} + b));
}
static inline void store(void* words, Words x0, Words x1, Words x2, Words x3) {
    const __m512i a = _mm512_mask_blend_epi32(0xAAAA, (__m512i)x0, (__m512i)(x1 << 32));
    const __m512i b = _mm512_mask_blend_epi32(0xAAAA, (__m512i)x2, (__m512i)(x3 << 32));
    const __m512i first = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
    const __m512i last = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
    _mm512_storeu_si512(words, _mm512_permutex2var_epi64(a, first, b));
    _mm512_storeu_si512(static_cast<__m512i*>(words) + 1, _mm512_permutex2var_epi64(a, last, b));
}
#elif defined(__AVX2__)
typedef uint64_t Words __attribute__((vector_size(32)));
static inline Words multiply(Words a, uint64_t b) {
    return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)(Words{} + b));
}
static inline void store(void* words, Words x0, Words x1, Words x2, Words x3) {
    const __m256i a = _mm256_blend_epi32((__m256i)x0, (__m256i)(x1 << 32), 0xAA);
    const __m256i b = _mm256_blend_epi32((__m256i)x2, (__m256i)(x3 << 32), 0xAA);
    const __m256i even = _mm256_unpacklo_epi64(a, b), odd = _mm256_unpackhi_epi64(a, b);
    _mm256_storeu_si256(static_cast<__m256i*>(words), _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256(static_cast<__m256i*>(words) + 1, _mm256_permute2x128_si256(even, odd, 0x31));
}
#else
typedef uint64_t Words __attribute__((vector_size(16)));
#if defined(__SSE2__)
static inline Words multiply(Words a, uint64_t b) {
    return (Words)_mm_mul_epu32((__m128i)a, (__m128i)(Words{} + b));
}
#else
static inline Words multiply(Words a, uint64_t b) { return (a & 0xffffffffu) * b; }
#endif
static inline void store(void* words, Words x0, Words x1, Words x2, Words x3) {
    for (int i = 0; i < 2; ++i) {
        const uint32_t block[4] = {static_cast<uint32_t>(x0[i]), static_cast<uint32_t>(x1[i]),
                                   static_cast<uint32_t>(x2[i]), static_cast<uint32_t>(x3[i])};
        std::memcpy(static_cast<char*>(words) + i * sizeof block, block, sizeof block);
    }
}
#endif

constexpr int kWidth = sizeof(Words) / sizeof(uint64_t);

// The ten rounds on N vectors of blocks, in place.
template <int N>
static inline __attribute__((always_inline)) void rounds(const Rng& rng, Words (&x0)[N], Words (&x1)[N],
                                                         Words (&x2)[N], Words (&x3)[N]) {
    uint32_t k0 = rng.key0, k1 = rng.key1;
    for (int round = 0; round < 10; ++round) {
        for (int v = 0; v < N; ++v) {
            const Words p0 = multiply(x0[v], kPhiloxM0), p1 = multiply(x2[v], kPhiloxM1);
            x0[v] = (p1 >> 32) ^ x1[v] ^ k0;
            x1[v] = p1;
            x2[v] = (p0 >> 32) ^ x3[v] ^ k1;
            x3[v] = p0;
        }
        k0 += kPhiloxW0;
        k1 += kPhiloxW1;
    }
}

}  // namespace lanes

// kBlocks (a multiple of 8) times four words: word w is output w % 4 of the block with counter
// (block + w / 4, row, step, site).
template <int kBlocks = kWords / 4>
static inline void philox_group(const Rng& rng, uint32_t block, uint32_t row, uint32_t site, void* words) {
    using namespace lanes;
    constexpr int vectors = kBlocks < 2 * kWidth ? 1 : 2;  // two where there are so many: their latencies overlap
    Words index;
    for (int i = 0; i < kWidth; ++i) index[i] = static_cast<uint64_t>(i);
    for (int i = 0; i < kBlocks; i += vectors * kWidth) {
        Words x0[vectors], x1[vectors], x2[vectors], x3[vectors];
        for (int v = 0; v < vectors; ++v) {
            x0[v] = index + (block + static_cast<uint32_t>(i + v * kWidth));
            x1[v] = Words{} + row;
            x2[v] = Words{} + rng.step;
            x3[v] = Words{} + site;
        }
        rounds(rng, x0, x1, x2, x3);
        for (int v = 0; v < vectors; ++v)
            store(static_cast<char*>(words) + 16 * (i + v * kWidth), x0[v], x1[v], x2[v], x3[v]);
    }
}

// words[j][i] is output j of the block with counter (block, row + i, step, site).
static inline void philox_rows(const Rng& rng, uint32_t block, uint32_t row, uint32_t site,
                               uint32_t words[4][kPhiloxRows]) {
    using namespace lanes;
    constexpr int vectors = kPhiloxRows / kWidth;
    Words x0[vectors], x1[vectors], x2[vectors], x3[vectors];
    alignas(64) uint64_t rows[kPhiloxRows];
    for (int i = 0; i < kPhiloxRows; ++i) rows[i] = row + static_cast<uint32_t>(i);
    for (int v = 0; v < vectors; ++v) {
        std::memcpy(&x1[v], rows + v * kWidth, sizeof(Words));
        x0[v] = Words{} + block;
        x2[v] = Words{} + rng.step;
        x3[v] = Words{} + site;
    }
    rounds(rng, x0, x1, x2, x3);
    for (int v = 0; v < vectors; ++v)
        for (int i = 0; i < kWidth; ++i) {
            words[0][v * kWidth + i] = static_cast<uint32_t>(x0[v][i]);
            words[1][v * kWidth + i] = static_cast<uint32_t>(x1[v][i]);
            words[2][v * kWidth + i] = static_cast<uint32_t>(x2[v][i]);
            words[3][v * kWidth + i] = static_cast<uint32_t>(x3[v][i]);
        }
}

}  // namespace fastseq::FASTSEQ_ISA
