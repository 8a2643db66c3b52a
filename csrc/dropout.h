#pragma once

#include "isa.h"
#include "philox.h"

namespace fastseq {

// One dropout of the model: an element whose word is below the threshold is dropped, the rest is scaled.
struct Dropout {
    Rng rng;
    uint32_t site;
    uint32_t threshold;  // 0: nothing is dropped and nothing drawn
    double scale;        // 1 / (1 - p)
};

// The words of 64 columns of a row (philox_group), or 64 that keep everything.
static inline void draw(const Dropout& dropout, int64_t group, int64_t row, uint32_t* words) {
    if (dropout.threshold)
        philox_group(dropout.rng, static_cast<uint32_t>(group), static_cast<uint32_t>(row), dropout.site, words);
    else
        for (int c = 0; c < kWords; ++c) words[c] = 0;
}

// y[r, c] = dropped(r, c) ? 0 : x[r, c] * scale for rows [0, rows) of width columns; y may be x.
FASTSEQ_KERNEL(void, dropout_f32, (const float* x, float* y, int64_t rows, int64_t columns, const Dropout& dropout,
                                   int threads))
FASTSEQ_KERNEL(void, dropout_f64, (const double* x, double* y, int64_t rows, int64_t columns, const Dropout& dropout,
                                   int threads))

}  // namespace fastseq
