#pragma once

#include "isa.h"
#include "philox.h"

namespace fastseq {

// y[r, c] = dropped(r, c) ? 0 : x[r, c] * scale for rows [0, rows) of width columns; y may be x.
FASTSEQ_KERNEL(void, dropout_f32, (const float* x, float* y, int64_t rows, int64_t columns, float scale,
                                   uint32_t threshold, const Rng& rng, uint32_t site, int threads))
FASTSEQ_KERNEL(void, dropout_f64, (const double* x, double* y, int64_t rows, int64_t columns, double scale,
                                   uint32_t threshold, const Rng& rng, uint32_t site, int threads))

}  // namespace fastseq
