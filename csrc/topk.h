#pragma once

#include "isa.h"

namespace fastseq {

// The k best of each row of scores [rows, items]: best first, equal scores by smaller id. The rows' seen items,
// seen[seen_offsets[r] .. seen_offsets[r + 1]), are set to -inf in scores; nothing that scores -inf is taken, and what
// is then missing is filled with -inf and id -1. Returns the lowest cell (row * items + id) that is NaN, or -1.
#define FASTSEQ_TOPK(T, suffix)                                                                                \
    FASTSEQ_KERNEL(int64_t, topk_##suffix,                                                                     \
                   (T* scores, int64_t rows, int64_t items, const int64_t* seen_offsets, const int64_t* seen,  \
                    int64_t k, T* best, int64_t* ids, int threads))
FASTSEQ_TOPK(float, f32)
FASTSEQ_TOPK(double, f64)
#undef FASTSEQ_TOPK

}  // namespace fastseq
