#pragma once

#include "isa.h"
#include "philox.h"

namespace fastseq {

// One dropout of the model: an element whose value is below the threshold is dropped, the rest is scaled.
struct Dropout {
    Rng rng;
    uint32_t site;
    uint16_t threshold;  // 0: nothing is dropped and nothing drawn
    double scale;        // 1 / (1 - threshold / 65536)

    // That of one head of attention.
    Dropout of_head(int64_t head) const { return {rng, site | static_cast<uint32_t>(head) << 16, threshold, scale}; }
};

// y[r, c] = dropped(r, c) ? 0 : x[r, c] * scale for rows [0, rows) of width columns; y may be x.
FASTSEQ_KERNEL(template <typename T> void, dropout,
               (const T* x, T* y, int64_t rows, int64_t columns, const Dropout& dropout, int threads))

}  // namespace fastseq
