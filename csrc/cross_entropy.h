#pragma once

#include "isa.h"

namespace fastseq {

// One tile of logits [rows, columns]: all rows of some, columns [first, first + columns) of the catalogue.
template <typename T>
struct CrossEntropyTile {
    T* logits;
    const int64_t* targets;  // [rows]; none of the tile's columns where the target lies elsewhere
    int64_t rows, columns, first;
    int threads;
};

// Takes the tile into each row's running maximum and sum of exp(logit - maximum), and stores its target's logit.
// maximum starts at -inf, sum at 0.
FASTSEQ_KERNEL(void, cross_entropy_tile_f32, (const CrossEntropyTile<float>& a, float* maximum, float* sum,
                                              float* target_logit))
FASTSEQ_KERNEL(void, cross_entropy_tile_f64, (const CrossEntropyTile<double>& a, double* maximum, double* sum,
                                              double* target_logit))

// Turns the logits into their gradients, (exp(logit - lse) - [column is the target]) * grad, in place.
FASTSEQ_KERNEL(void, cross_entropy_tile_backward_f32, (const CrossEntropyTile<float>& a, const float* lse,
                                                       const float* grad))
FASTSEQ_KERNEL(void, cross_entropy_tile_backward_f64, (const CrossEntropyTile<double>& a, const double* lse,
                                                       const double* grad))

}  // namespace fastseq
