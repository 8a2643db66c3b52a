#pragma once

#include "sampled_loss.h"

namespace fastseq {

// What follows the recurrence: y = h[rows] weightᵀ + bias, the sampled loss of y with shared negatives, and the gradients
// of scale times the sum of the losses. loss.h is not read; a target may be `ignored`: no loss, no gradient.
template <typename T>
struct DenseLoss {
    LossInputs<T> loss;
    const T *h, *weight, *bias;  // [events, hidden], [width, hidden], [width]
    const int64_t* rows;         // [loss.rows], of h; null: all of them in order
    int64_t hidden, ignored;
    T scale;
    // losses [rows]; y [rows, width]; d_scores [rows], of the targets; d_h [rows, hidden]; d_weight [width, hidden];
    // d_bias [width]; d_negatives [count, width], by the negatives' rows of the table.
    T *losses, *y, *d_scores, *d_h, *d_weight, *d_bias, *d_negatives;
    int threads;
};

FASTSEQ_KERNEL(template <typename T> void, gru_sampled_loss, (const DenseLoss<T>& a))

}  // namespace fastseq
