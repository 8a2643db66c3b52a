#pragma once

#include "isa.h"

namespace fastseq {

// Sequence s has rows [starts[s], starts[s] + lengths[s]) of the jagged batch; the caller gives the non-empty
// sequences, longest first. bias_hh may be null.
//
// Forward: h [T, H] and saved [T, 4H] = (r, z, n, W_hn h + b_hn).
FASTSEQ_KERNEL(void, gru_f32, (const float* x_gates, const float* weight_hh, const float* bias_hh,
                               const int32_t* starts, const int32_t* lengths, int64_t sequences, int64_t hidden,
                               float* h, float* saved, int threads))
FASTSEQ_KERNEL(void, gru_f64, (const double* x_gates, const double* weight_hh, const double* bias_hh,
                               const int32_t* starts, const int32_t* lengths, int64_t sequences, int64_t hidden,
                               double* h, double* saved, int threads))

// Backward: grad_x [T, 3H], and what the weight's gradient is a product of: grad_hidden [T, 3H], the gradient of
// W_hh h + b_hh, and previous [T, H], the h it saw. carry [sequences, H] is scratch.
FASTSEQ_KERNEL(void, gru_backward_f32, (const float* grad, const float* weight_hh, const float* h,
                                        const float* saved, const int32_t* starts, const int32_t* lengths,
                                        int64_t sequences, int64_t hidden, float* grad_x, float* grad_hidden,
                                        float* previous, float* carry, int threads))
FASTSEQ_KERNEL(void, gru_backward_f64, (const double* grad, const double* weight_hh, const double* h,
                                        const double* saved, const int32_t* starts, const int32_t* lengths,
                                        int64_t sequences, int64_t hidden, double* grad_x, double* grad_hidden,
                                        double* previous, double* carry, int threads))

}  // namespace fastseq
