#pragma once

#include "isa.h"

namespace fastseq {

enum class SampledLoss { bpr, bce, sampled_softmax };  // gbce is bce with a beta

// A batch of rows with a target each and its negatives: [rows, count], or [count] for all rows (shared).
// log_q has the shape of negatives and is read by sampled_softmax only. beta weighs the positive term of bce.
template <typename T>
struct LossInputs {
    SampledLoss kind;
    double beta;
    const T *h, *table;  // [rows, width], [items, width]
    const int64_t *targets, *negatives;
    const T* log_q;
    int64_t rows, count, width;
    bool shared;
};

// loss [rows]; grad_h [rows, width] = d loss_i / d h_i; grad_scores [rows, 1 + count] = d loss_i / d score_ij, the
// target's first. With shared negatives grad_scores must hold their scores on entry, and grad_h gets the target's
// part alone: the rest is a matrix product.
FASTSEQ_KERNEL(template <typename T> void, sampled_loss,
               (const LossInputs<T>& in, T* loss, T* grad_h, T* grad_scores, int threads))

// out[id] = Σ coefficients[e] * source[rows[e]] over the entries e in [starts[id], starts[id + 1]), in that order;
// every row of out [ids, width] is written.
FASTSEQ_KERNEL(template <typename T> void, sum_by_id,
               (const int64_t* starts, const int32_t* rows, const T* coefficients, const T* source, int64_t ids,
                int64_t width, T* out, int threads))

}  // namespace fastseq
