#pragma once

#include "dropout.h"

namespace fastseq {

// y = dropout(gelu(x + bias)); x, y [rows, width], bias [width].
template <typename T>
struct BiasGeluDropout {
    const T *x, *bias;
    T* y;
    int64_t rows, width;
    Dropout dropout;
    int threads;
};

template <typename T>
struct BiasGeluDropoutBackward {
    const T *grad, *x, *bias;
    T *dx, *dbias;
    T* partial;  // [block_count(rows), width]
    int64_t rows, width;
    Dropout dropout;
    int threads;
};

FASTSEQ_KERNEL(template <typename T> void, bias_gelu_dropout, (const BiasGeluDropout<T>& a))
FASTSEQ_KERNEL(template <typename T> void, bias_gelu_dropout_backward, (const BiasGeluDropoutBackward<T>& a))

}  // namespace fastseq
