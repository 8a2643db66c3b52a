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
FASTSEQ_KERNEL(void, adam_dense_f32, (const AdamTable<float>& table, const int32_t* slots, const float* grad,
                                      int threads))
FASTSEQ_KERNEL(void, adam_dense_f64, (const AdamTable<double>& table, const int32_t* slots, const double* grad,
                                      int threads))

// Only the `count` distinct rows given.
FASTSEQ_KERNEL(void, adam_lazy_f32, (const AdamTable<float>& table, const int64_t* rows, int64_t count,
                                     const float* grad, int threads))
FASTSEQ_KERNEL(void, adam_lazy_f64, (const AdamTable<double>& table, const int64_t* rows, int64_t count,
                                     const double* grad, int threads))

}  // namespace fastseq
