// The mask of a dropout op, 64 columns at a time.
#pragma once

#include "dropout.h"
#include "philox_lanes.h"

namespace fastseq::FASTSEQ_ISA {

// The words of 64 columns of a row (philox_group), or 64 that keep everything.
static inline void draw(const Dropout& dropout, int64_t group, int64_t row, uint32_t* words) {
    if (dropout.threshold)
        philox_group(dropout.rng, static_cast<uint32_t>(group), static_cast<uint32_t>(row), dropout.site, words);
    else
        for (int c = 0; c < kWords; ++c) words[c] = 0;
}

}  // namespace fastseq::FASTSEQ_ISA
