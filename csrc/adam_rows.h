#pragma once

#include "isa.h"

namespace fastseq {

// One Adam step of an embedding table [rows, width] whose gradient is zero but for some rows.
template <typename T>
struct AdamTable {
    T *weight, *exp_avg, *exp_avg_sq;  // [rows, width]
    int64_t* last_step;                // [rows]: the step its moments are decayed to, 0 while they are zero
    int64_t rows, width, step;
    double lr, beta1, beta2, eps;
};

// Every row with a gradient or with moments: slots[row] is its row of grad, or -1.
FASTSEQ_KERNEL(template <typename T> void, adam_dense,
               (const AdamTable<T>& table, const int32_t* slots, const T* grad, int threads))

// Only the `count` distinct rows given.
FASTSEQ_KERNEL(template <typename T> void, adam_lazy,
               (const AdamTable<T>& table, const int64_t* rows, int64_t count, const T* grad, int threads))

}  // namespace fastseq
