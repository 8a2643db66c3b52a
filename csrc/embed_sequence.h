#pragma once

#include "dropout.h"

namespace fastseq {

// y = dropout(LayerNorm(item_weight[items] + position_weight[positions])); matrices are [rows, width].
template <typename T>
struct EmbedSequence {
    const int64_t* items;      // [rows]
    const int32_t* positions;  // [rows], counted from the start of the row's sequence
    const T *item_weight, *position_weight;  // position_weight may be null
    const T *norm_weight, *norm_bias;        // both null: no normalisation
    T *y, *mean, *rstd;                      // mean, rstd: [rows], null without normalisation
    int64_t rows, width;
    T eps;
    Dropout dropout;
    int threads;
};

// de, the gradient of the normalisation's input (without normalisation that of dropout's), and those of its vectors.
template <typename T>
struct EmbedSequenceNormBackward {
    const T* grad;
    const int64_t* items;
    const int32_t* positions;
    const T *item_weight, *position_weight, *norm_weight, *mean, *rstd;
    T *de, *dnorm_weight, *dnorm_bias;
    T* partial;  // [block_count(rows), 3, width]
    int64_t rows, width;
    Dropout dropout;
    int threads;
};

// Sums of the rows of de per item and per position.
template <typename T>
struct EmbedSequenceScatter {
    const T* de;
    const int64_t* items;
    const int32_t* offsets;        // [sequences + 1]
    T *ditem, *dposition;          // [n_items, width], zero at first; [n_positions, width], may be null
    int32_t *order, *scratch;      // [rows], [rows + 1]
    int64_t rows, sequences, n_items, n_positions, width, padding_idx;
    int threads;
};

FASTSEQ_KERNEL(template <typename T> void, embed_sequence, (const EmbedSequence<T>& a))
FASTSEQ_KERNEL(template <typename T> void, embed_sequence_norm_backward, (const EmbedSequenceNormBackward<T>& a))
FASTSEQ_KERNEL(template <typename T> void, embed_sequence_scatter, (const EmbedSequenceScatter<T>& a))

}  // namespace fastseq
