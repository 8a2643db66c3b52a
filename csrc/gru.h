#pragma once

#include "isa.h"

namespace fastseq {

// Sequence s has rows [starts[s], starts[s] + lengths[s]) of the jagged batch; the caller gives the non-empty
// sequences, longest first. bias_hh may be null.
//
// Forward: h [T, H] and saved [T, 4H] = (r, z, n, W_hn h + b_hn).
FASTSEQ_KERNEL(template <typename T> void, gru,
               (const T* x_gates, const T* weight_hh, const T* bias_hh, const int32_t* starts, const int32_t* lengths,
                int64_t sequences, int64_t hidden, T* h, T* saved, int threads))

// Backward: grad_x [T, 3H], and what the weight's gradient is a product of: grad_hidden [T, 3H], the gradient of
// W_hh h + b_hh, and previous [T, H], the h it saw. carry [sequences, H] is scratch.
FASTSEQ_KERNEL(template <typename T> void, gru_backward,
               (const T* grad, const T* weight_hh, const T* h, const T* saved, const int32_t* starts,
                const int32_t* lengths, int64_t sequences, int64_t hidden, T* grad_x, T* grad_hidden, T* previous,
                T* carry, int threads))

}  // namespace fastseq
