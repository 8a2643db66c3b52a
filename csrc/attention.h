#pragma once

#include "dropout.h"
#include "isa.h"

namespace fastseq {

// What every attention kernel needs to know besides its tensors.
struct AttentionBatch {
    int64_t sequences, heads, width;
    const int32_t* offsets;  // [sequences + 1]
    const int32_t* order;    // the sequences, longest first, so that the threads end together
    double scale;
    Dropout dropout;
    int threads;
};

// Rows of [heads, width], each row contiguous and `stride` elements after the one before.
template <typename T>
struct HeadRows {
    const T* data;
    int64_t stride;

    // The same from a given row and column on.
    HeadRows at(int64_t row, int64_t column) const { return {data + row * stride + column, stride}; }
};

// What a kernel reads and writes. Rows of q: those of the batch, or one for each sequence (last query).
template <typename T>
struct AttentionTensors {
    HeadRows<T> q, k, v;
    T *out, *lse;                 // forward writes: like q, and [rows of q, heads]
    const T *grad, *saved_lse;    // backward reads: like out and lse
    T *grad_q, *grad_k, *grad_v;  // backward writes: like q, k and v
    T* scratch;                   // threads * scratch_size elements
    int64_t scratch_size;         // a multiple of 16
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
inline int64_t last_query_scratch(int64_t longest) { return 2 * padded_length(longest); }

#define FASTSEQ_ATTENTION(name) \
    FASTSEQ_KERNEL(template <typename T> void, name, (const AttentionBatch& batch, const AttentionTensors<T>& x))
FASTSEQ_ATTENTION(causal_attention)
FASTSEQ_ATTENTION(causal_attention_backward)
FASTSEQ_ATTENTION(last_query_attention)
FASTSEQ_ATTENTION(last_query_attention_backward)
#undef FASTSEQ_ATTENTION

}  // namespace fastseq
