// Softmax cross-entropy over tiles of logits: what lies between the matrix products.
//
// The running maximum and sum over tiles are those of Milakov and Gimelshein, "Online normalizer calculation for
// softmax", 2018.
#include "cross_entropy.h"

#include <cmath>

#include "elementary.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

template <typename T>
void tile(const CrossEntropyTile<T>& a, T* maximum, T* sum, T* target_logit) {
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int64_t row = 0; row < a.rows; ++row) {
        const T* logits = a.logits + row * a.columns;
        T top = maximum[row];
#pragma omp simd reduction(max : top)
        for (int64_t c = 0; c < a.columns; ++c) top = logits[c] > top ? logits[c] : top;
        const T shift = top > T(-HUGE_VAL) ? top : T(0);  // -inf - -inf would be NaN
        T total = T(0);
#pragma omp simd reduction(+ : total)
        for (int64_t c = 0; c < a.columns; ++c) total += bounded_exp(logits[c] - shift);
        sum[row] = sum[row] * bounded_exp(maximum[row] - shift) + total;  // a NaN of an earlier tile stays
        maximum[row] = top;
        const int64_t target = a.targets[row] - a.first;
        if (target >= 0 && target < a.columns) target_logit[row] = logits[target];
    }
}

template <typename T>
void tile_backward(const CrossEntropyTile<T>& a, const T* lse, const T* grad) {
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int64_t row = 0; row < a.rows; ++row) {
        T* logits = a.logits + row * a.columns;
        const T g = grad[row], normalizer = lse[row];
#pragma omp simd
        for (int64_t c = 0; c < a.columns; ++c) logits[c] = bounded_exp(logits[c] - normalizer) * g;
        const int64_t target = a.targets[row] - a.first;
        if (target >= 0 && target < a.columns) logits[target] -= g;
    }
}

}  // namespace

void cross_entropy_tile_f32(const CrossEntropyTile<float>& a, float* maximum, float* sum, float* target_logit) {
    tile(a, maximum, sum, target_logit);
}
void cross_entropy_tile_f64(const CrossEntropyTile<double>& a, double* maximum, double* sum, double* target_logit) {
    tile(a, maximum, sum, target_logit);
}
void cross_entropy_tile_backward_f32(const CrossEntropyTile<float>& a, const float* lse, const float* grad) {
    tile_backward(a, lse, grad);
}
void cross_entropy_tile_backward_f64(const CrossEntropyTile<double>& a, const double* lse, const double* grad) {
    tile_backward(a, lse, grad);
}

}  // namespace fastseq::FASTSEQ_ISA
