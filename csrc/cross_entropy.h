#pragma once

#include "isa.h"

namespace fastseq {

// loss[i] = lse[i] - logit[i, target[i]] for logits = softcap(h weightᵀ + bias), and gradients of Σ upstream · loss.
template <typename T>
struct CrossEntropy {
    const T *h, *weight, *bias;  // [rows, width], [classes, width], [classes] or null
    const int64_t* targets;      // [rows]; a row whose target is ignore_index has loss and gradient 0
    int64_t ignore_index;
    T softcap;          // 0: none
    const T* upstream;  // [rows]; null: ones
    T *loss, *lse;      // [rows]
    T *dh, *dweight, *dbias;  // shapes of h, weight and bias, or null: losses alone
    int64_t rows, classes, width;
    int threads;
};

// The bits do not depend on the number of threads. *_bf16: the operands of all products are rounded to bfloat16.
FASTSEQ_KERNEL(void, cross_entropy_f32, (const CrossEntropy<float>& a))
FASTSEQ_KERNEL(void, cross_entropy_bf16, (const CrossEntropy<float>& a))
FASTSEQ_KERNEL(void, cross_entropy_f64, (const CrossEntropy<double>& a))

}  // namespace fastseq
