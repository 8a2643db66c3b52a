#pragma once

#include "isa.h"

namespace fastseq {

// The histories to convolve, grouped by sequence. The history of target n, of sequence s, is the rows
// [max(offsets[s], stops[n] - max_len), stops[n]) of x.
struct CaserPlan {
    int64_t n_sequences, n_targets, n_chunks;
    const int32_t* offsets;     // [n_sequences + 1]
    const int64_t* stops;       // [n_targets]
    const int64_t* order;       // [n_targets]: targets by sequence
    const int64_t* begin;       // [n_sequences + 1]: those of s are order[begin[s]] ... order[begin[s + 1] - 1]
    const int64_t* first_stop;  // [n_sequences]: smallest and
    const int64_t* last_stop;   // [n_sequences]: largest stop; both offsets[s] where s has no target
    const int64_t* chunks;      // [n_chunks + 1]: chunk c is the sequences chunks[c] ... chunks[c + 1] - 1
    int64_t max_rows;           // most rows that the histories of one chunk cover together
};

template <typename T>
struct CaserInputs {
    int max_len, d, n_h, n_v;
    const T* x;            // [rows, d]
    const T* weight_h;     // [max_len (max_len + 1) / 2, n_h, d]: tap j of height h at h (h - 1) / 2 + j
    const T* bias_h;       // [max_len, n_h]
    const T* weight_v;     // [n_v, max_len]
    const T* bias_v;       // [n_v]
    const T* padding_row;  // [d]
};

// The gradients, in the shapes of the inputs; zero at first.
template <typename T>
struct CaserGradients {
    T *x, *weight_h, *bias_h, *weight_v, *bias_v, *padding_row;
};

// out [n_targets, n_v d + max_len n_h]; position [n_targets, max_len n_h]: where in the history the maximum lies (the
// first of equal ones), -1 where ReLU made it zero.
FASTSEQ_KERNEL(template <typename T> void, caser_windows,
               (const CaserPlan& plan, const CaserInputs<T>& in, T* out, int32_t* position, int threads))
FASTSEQ_KERNEL(template <typename T> void, caser_windows_backward,
               (const CaserPlan& plan, const CaserInputs<T>& in, const T* grad, const int32_t* position,
                const CaserGradients<T>& result, int threads))

}  // namespace fastseq
