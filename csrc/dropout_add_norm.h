#pragma once

#include "dropout.h"

namespace fastseq {

// y = LayerNorm(residual + dropout(x + x_bias)); matrices are [rows, width], vectors [width].
template <typename T>
struct DropoutAddNorm {
    const T *x, *residual, *weight, *bias, *x_bias;  // x_bias may be null
    T *y, *mean, *rstd;                              // mean, rstd: [rows]
    int64_t rows, width;
    T eps;
    Dropout dropout;
    int threads;
};

// Its gradients, from the upstream gradient of y and the forward's mean and rstd.
template <typename T>
struct DropoutAddNormBackward {
    const T *grad, *x, *residual, *weight, *x_bias, *mean, *rstd;
    T *dx, *dresidual, *dweight, *dbias, *dx_bias;  // dx_bias may be null
    T* partial;                                     // [block_count(rows), 3, width]
    int64_t rows, width;
    Dropout dropout;
    int threads;
};

FASTSEQ_KERNEL(template <typename T> void, dropout_add_norm, (const DropoutAddNorm<T>& a))
FASTSEQ_KERNEL(template <typename T> void, dropout_add_norm_backward, (const DropoutAddNormBackward<T>& a))

}  // namespace fastseq
