#pragma once

#include "isa.h"
#include "philox.h"

namespace fastseq {

// What every attention kernel needs to know besides its tensors.
struct AttentionBatch {
    int64_t sequences, heads, width;
    const int32_t* offsets;  // [sequences + 1]
    const int32_t* order;    // the sequences, longest first, so that the threads end together
    double scale;
    double p;            // dropout
    uint32_t threshold;  // its threshold; 0 draws nothing
    Rng rng;
    uint32_t site;
    int threads;
};

// Rows of [heads, width], each row contiguous and `stride` elements after the one before.
template <typename T>
struct HeadRows {
    const T* data;
    int64_t stride;
};

constexpr int kQueries = 16;  // queries handled together, one in each vector lane

inline int64_t padded_width(int64_t width) { return (width + 15) / 16 * 16; }
inline int64_t padded_length(int64_t length) { return (length + kQueries - 1) / kQueries * kQueries; }

// Elements of scratch memory that one thread needs for sequences of up to `longest` rows.
inline int64_t attention_scratch(int64_t longest, int64_t width) {
    return padded_length(longest) * (2 * padded_width(width) + kQueries) + 2 * kQueries * padded_width(width);
}
inline int64_t attention_backward_scratch(int64_t longest, int64_t width) {
    return padded_length(longest) * (4 * padded_width(width) + 2 * kQueries) + 5 * kQueries * padded_width(width);
}
inline int64_t last_query_scratch(int64_t longest) { return longest; }

#define FASTSEQ_ATTENTION(T, suffix)                                                                                \
    FASTSEQ_KERNEL(void, causal_attention_##suffix,                                                                 \
                   (const AttentionBatch& batch, HeadRows<T> q, HeadRows<T> k, HeadRows<T> v, T* out, T* lse,       \
                    T* scratch, int64_t scratch_size))                                                              \
    FASTSEQ_KERNEL(void, causal_attention_backward_##suffix,                                                        \
                   (const AttentionBatch& batch, const T* grad, HeadRows<T> q, HeadRows<T> k, HeadRows<T> v,        \
                    const T* out, const T* lse, T* grad_q, T* grad_k, T* grad_v, T* scratch, int64_t scratch_size)) \
    FASTSEQ_KERNEL(void, last_query_attention_##suffix,                                                             \
                   (const AttentionBatch& batch, HeadRows<T> q, HeadRows<T> k, HeadRows<T> v, T* out, T* lse,       \
                    T* scratch, int64_t scratch_size))                                                              \
    FASTSEQ_KERNEL(void, last_query_attention_backward_##suffix,                                                    \
                   (const AttentionBatch& batch, const T* grad, HeadRows<T> q, HeadRows<T> k, HeadRows<T> v,        \
                    const T* out, const T* lse, T* grad_q, T* grad_k, T* grad_v))
FASTSEQ_ATTENTION(float, f32)
FASTSEQ_ATTENTION(double, f64)
#undef FASTSEQ_ATTENTION

}  // namespace fastseq
