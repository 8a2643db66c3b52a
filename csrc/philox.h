// Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), and the counter layout
// that every op shares (fastseq/ops/philox.py is its written contract).
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fastseq {

// Seed and step of one training step, as they enter every random op.
struct Rng {
    uint32_t key0, key1;  // low and high word of the seed
    uint32_t step;        // low word of the step

    Rng(int64_t seed, int64_t step_)
        : key0(static_cast<uint32_t>(static_cast<uint64_t>(seed))),
          key1(static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)),
          step(static_cast<uint32_t>(static_cast<uint64_t>(step_))) {}
};

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;

// One block: four random words for the counter (c0, c1, c2, c3), in place.
static inline void philox(const Rng& rng, uint32_t c[4]) {
    uint32_t k0 = rng.key0, k1 = rng.key1;
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = static_cast<uint64_t>(kPhiloxM0) * c[0];
        const uint64_t p1 = static_cast<uint64_t>(kPhiloxM1) * c[2];
        const uint32_t y0 = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0;
        const uint32_t y2 = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1;
        c[0] = y0;
        c[1] = static_cast<uint32_t>(p1);
        c[2] = y2;
        c[3] = static_cast<uint32_t>(p0);
        k0 += kPhiloxW0;
        k1 += kPhiloxW1;
    }
}

constexpr int kWords = 64;  // words drawn at a time: 16 blocks, one group of 64 columns

#if defined(__AVX2__)

// Compilers do not find the vector multiply 32 x 32 -> 64 bits on their own, hence intrinsics. A 64-bit lane holds one
// word of one block in its low half; the high half is never cleared, since the multiply does not read it.
namespace {

#if defined(__AVX512F__)
struct Lanes {
    using V = __m512i;
    static constexpr int size = 8;
    static V all(uint32_t x) { return _mm512_set1_epi64(x); }
    static V index() { return _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0); }
    static V multiply(V a, V b) { return _mm512_maskz_mul_epu32(0xff, a, b); }
    static V high(V a) { return a >> 32; }
    static void store(uint32_t* words, V x0, V x1, V x2, V x3) {
        const V a = _mm512_mask_blend_epi32(0xAAAA, x0, x1 << 32), b = _mm512_mask_blend_epi32(0xAAAA, x2, x3 << 32);
        const V first = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0), last = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
        _mm512_storeu_si512(words, _mm512_permutex2var_epi64(a, first, b));
        _mm512_storeu_si512(words + 16, _mm512_permutex2var_epi64(a, last, b));
    }
};
#else
struct Lanes {
    using V = __m256i;
    static constexpr int size = 4;
    static V all(uint32_t x) { return _mm256_set1_epi64x(x); }
    static V index() { return _mm256_set_epi64x(3, 2, 1, 0); }
    static V multiply(V a, V b) { return _mm256_mul_epu32(a, b); }
    static V high(V a) { return _mm256_srli_epi64(a, 32); }
    static void store(uint32_t* words, V x0, V x1, V x2, V x3) {
        const V a = _mm256_blend_epi32(x0, x1 << 32, 0xAA), b = _mm256_blend_epi32(x2, x3 << 32, 0xAA);
        const V even = _mm256_unpacklo_epi64(a, b), odd = _mm256_unpackhi_epi64(a, b);
        _mm256_storeu_si256(reinterpret_cast<V*>(words), _mm256_permute2x128_si256(even, odd, 0x20));
        _mm256_storeu_si256(reinterpret_cast<V*>(words + 8), _mm256_permute2x128_si256(even, odd, 0x31));
    }
};
#endif

}  // namespace

// The 64 words of columns [64 * group, 64 * group + 64) of one row: words[c] belongs to column 64 * group + c,
// that is output c % 4 of the block with counter (16 * group + c / 4, row, step, site).
static inline void philox_group(const Rng& rng, uint32_t group, uint32_t row, uint32_t site, uint32_t* words) {
    using V = Lanes::V;
    const V m0 = Lanes::all(kPhiloxM0), m1 = Lanes::all(kPhiloxM1);
    for (int block = 0; block < kWords / 4; block += 2 * Lanes::size) {  // two vectors: their latencies overlap
        const uint32_t first = group * (kWords / 4) + static_cast<uint32_t>(block);
        V x0[2] = {Lanes::index() + Lanes::all(first), Lanes::index() + Lanes::all(first + Lanes::size)};
        V x1[2] = {Lanes::all(row), Lanes::all(row)};
        V x2[2] = {Lanes::all(rng.step), Lanes::all(rng.step)};
        V x3[2] = {Lanes::all(site), Lanes::all(site)};
        uint32_t k0 = rng.key0, k1 = rng.key1;
        for (int round = 0; round < 10; ++round) {
            for (int i = 0; i < 2; ++i) {
                const V p0 = Lanes::multiply(m0, x0[i]), p1 = Lanes::multiply(m1, x2[i]);
                x0[i] = Lanes::high(p1) ^ x1[i] ^ Lanes::all(k0);
                x2[i] = Lanes::high(p0) ^ x3[i] ^ Lanes::all(k1);
                x1[i] = p1;
                x3[i] = p0;
            }
            k0 += kPhiloxW0;
            k1 += kPhiloxW1;
        }
        for (int i = 0; i < 2; ++i) Lanes::store(words + 4 * (block + i * Lanes::size), x0[i], x1[i], x2[i], x3[i]);
    }
}

#else

static inline void philox_group(const Rng& rng, uint32_t group, uint32_t row, uint32_t site, uint32_t* words) {
    constexpr int blocks = kWords / 4;
    uint32_t x0[blocks], x1[blocks], x2[blocks], x3[blocks];
    for (int i = 0; i < blocks; ++i) {
        x0[i] = group * blocks + static_cast<uint32_t>(i);
        x1[i] = row;
        x2[i] = rng.step;
        x3[i] = site;
    }
    uint32_t k0 = rng.key0, k1 = rng.key1;
    for (int round = 0; round < 10; ++round) {
#pragma omp simd
        for (int i = 0; i < blocks; ++i) {
            const uint64_t p0 = static_cast<uint64_t>(kPhiloxM0) * x0[i];
            const uint64_t p1 = static_cast<uint64_t>(kPhiloxM1) * x2[i];
            const uint32_t y0 = static_cast<uint32_t>(p1 >> 32) ^ x1[i] ^ k0;
            const uint32_t y2 = static_cast<uint32_t>(p0 >> 32) ^ x3[i] ^ k1;
            x0[i] = y0;
            x1[i] = static_cast<uint32_t>(p1);
            x2[i] = y2;
            x3[i] = static_cast<uint32_t>(p0);
        }
        k0 += kPhiloxW0;
        k1 += kPhiloxW1;
    }
    for (int i = 0; i < blocks; ++i) {
        words[4 * i] = x0[i];
        words[4 * i + 1] = x1[i];
        words[4 * i + 2] = x2[i];
        words[4 * i + 3] = x3[i];
    }
}

#endif

}  // namespace fastseq
