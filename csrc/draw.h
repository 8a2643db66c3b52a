// The mask of a dropout op, 128 columns at a time.
#pragma once

#include "dropout.h"
#include "philox_lanes.h"

namespace fastseq::FASTSEQ_ISA {

constexpr int kDrawn = 2 * kWords;
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the two values of a word are read where they lie");

// The 16-bit values of `count` columns of a row, at most kDrawn, from `first` on, a multiple of 8; or zeros, below which
// is nothing.
static inline void draw(const Dropout& dropout, int64_t first, int64_t row, int count, uint16_t* values) {
    const uint32_t block = static_cast<uint32_t>(first / 8), c1 = static_cast<uint32_t>(row);
    if (dropout.threshold == 0)
        std::memset(values, 0, kDrawn * sizeof *values);
    else if (count > kDrawn / 2)
        philox_group(dropout.rng, block, c1, dropout.site, values);
    else
        philox_group<kWords / 8>(dropout.rng, block, c1, dropout.site, values);
}

// factors[c] = 0 where column c of the row is dropped, else the scale.
template <typename T>
static inline void draw_factors(const Dropout& dropout, int64_t row, int64_t width, T* __restrict__ factors) {
    const T scale = static_cast<T>(dropout.scale);
    for (int64_t first = 0; first < width; first += kDrawn) {
        alignas(64) uint16_t values[kDrawn];
        const int count = static_cast<int>(width - first < kDrawn ? width - first : kDrawn);
        draw(dropout, first, row, count, values);
#pragma omp simd
        for (int c = 0; c < count; ++c) factors[first + c] = values[c] < dropout.threshold ? T(0) : scale;
    }
}

}  // namespace fastseq::FASTSEQ_ISA
