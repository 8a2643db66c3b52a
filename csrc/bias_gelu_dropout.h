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

FASTSEQ_KERNEL(void, bias_gelu_dropout_f32, (const BiasGeluDropout<float>& a))
FASTSEQ_KERNEL(void, bias_gelu_dropout_f64, (const BiasGeluDropout<double>& a))
FASTSEQ_KERNEL(void, bias_gelu_dropout_backward_f32, (const BiasGeluDropoutBackward<float>& a))
FASTSEQ_KERNEL(void, bias_gelu_dropout_backward_f64, (const BiasGeluDropoutBackward<double>& a))

}  // namespace fastseq
