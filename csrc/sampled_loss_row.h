// A row's sampled loss with its gradients, inlined into the kernels that have one.
#pragma once

#include <cmath>

#include "elementary.h"
#include "sampled_loss.h"

namespace fastseq::FASTSEQ_ISA {

template <typename T>
FASTSEQ_INLINE T dot(const T* a, const T* b, int64_t width) {
    T sum = T(0);
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < width; ++c) sum += a[c] * b[c];
    return sum;
}

// y = scale * x, or y += scale * x.
template <typename T>
FASTSEQ_INLINE void assign_scaled(T* y, T scale, const T* x, int64_t width) {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) y[c] = scale * x[c];
}

template <typename T>
FASTSEQ_INLINE void add_scaled(T* y, T scale, const T* x, int64_t width) {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) y[c] += scale * x[c];
}

// Table rows that will be read kAhead negatives from now: in a large table each is a cache miss, and they are known.
constexpr int64_t kAhead = 8;

template <typename T>
FASTSEQ_INLINE void prefetch(const T* row, int64_t width) {
    constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
    for (int64_t c = 0; c < width; c += line) __builtin_prefetch(row + c);
}

// How a row's loss uses its negatives. Those equal to the target are masked out; `kept` is how many are left.
//
// scores holds the negatives' scores on entry and d loss / d score on return.

// mean softplus(s⁻ - s⁺), 0 where nothing is kept.
template <typename T>
static T bpr(T positive, const int64_t* negatives, int64_t target, int64_t count, T kept, T* scores, T& grad_positive) {
    const T share = kept > T(0) ? T(1) / kept : T(0);
    T loss = T(0), total = T(0);
#pragma omp simd reduction(+ : loss, total)
    for (int64_t j = 0; j < count; ++j) {
        T derivative;
        const T value = softplus(scores[j] - positive, derivative);
        const T weight = negatives[j] == target ? T(0) : share;
        loss += weight * value;
        total += weight * derivative;
        scores[j] = weight * derivative;
    }
    grad_positive = -total;
    return loss;
}

// (beta softplus(-s⁺) + Σ softplus(s⁻)) / (kept + 1)
template <typename T>
static T bce(T positive, const int64_t* negatives, int64_t target, int64_t count, T kept, T beta, T* scores,
      T& grad_positive) {
    const T share = T(1) / (kept + T(1));
    T derivative;
    T loss = share * beta * softplus(-positive, derivative);
    grad_positive = -share * beta * derivative;
#pragma omp simd reduction(+ : loss)
    for (int64_t j = 0; j < count; ++j) {
        T slope;
        const T value = softplus(scores[j], slope);
        const T weight = negatives[j] == target ? T(0) : share;
        loss += weight * value;
        scores[j] = weight * slope;
    }
    return loss;
}

// softplus(L - s⁺) with L = log Σ exp(s⁻ - log(kept q⁻)): equal to -s⁺ + log(e^{s⁺} + Σ …) without the cancellation.
template <typename T>
static T sampled_softmax(T positive, const int64_t* negatives, int64_t target, int64_t count, T kept, const T* log_q,
                  T* scores, T& grad_positive) {
    const T lowest = -HUGE_VAL;
    T largest = lowest, sum = T(0);
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < count; ++j) {
        const T logit = negatives[j] == target ? lowest : scores[j] - log_q[j];
        scores[j] = logit;
        largest = logit > largest ? logit : largest;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; ++j) {
        const T e = negatives[j] == target ? T(0) : bounded_exp(scores[j] - largest);
        scores[j] = e;
        sum += e;
    }
    grad_positive = T(0);
    if (!(kept > T(0))) return T(0);
    T probability;  // of all negatives together
    const T loss = softplus(largest + std::log(sum) - std::log(kept) - positive, probability);
    grad_positive = -probability;
    const T scale = probability / sum;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) scores[j] *= scale;
    return loss;
}

// The loss of row i with hidden state h. scores[0 ... count - 1] become d loss / d score of its negatives, which with
// shared negatives must hold their scores on entry, and scores[-1] that of the target. grad [width] becomes d loss / d h,
// with shared negatives the target's part alone: the rest is a matrix product.
template <typename T>
static T row_loss(const LossInputs<T>& in, int64_t i, const T* h, T* scores, T* grad) {
    T loss = T(0);
    const int64_t target = in.targets[i], width = in.width, count = in.count;
    const int64_t* negatives = in.negatives + (in.shared ? 0 : i * count);
    const T* log_q = in.log_q == nullptr ? nullptr : in.log_q + (in.shared ? 0 : i * count);
    const T* positive_row = in.table + target * width;
    const int64_t next_target = i + 1 + kAhead / (count + 1);
    if (next_target < in.rows) prefetch(in.table + in.targets[next_target] * width, width);
    const T positive = dot(h, positive_row, width);
    for (int64_t j = 0; !in.shared && j < count; ++j) {
        if (i * count + j + kAhead < in.rows * count) prefetch(in.table + negatives[j + kAhead] * width, width);
        scores[j] = dot(h, in.table + negatives[j] * width, width);
    }
    int64_t hits = 0;
#pragma omp simd reduction(+ : hits)
    for (int64_t j = 0; j < count; ++j) hits += negatives[j] == target;
    const T kept = static_cast<T>(count - hits);

    T grad_positive = T(0);
    switch (in.kind) {
        case SampledLoss::bpr:
            loss = bpr(positive, negatives, target, count, kept, scores, grad_positive);
            break;
        case SampledLoss::bce:
            loss = bce(positive, negatives, target, count, kept, static_cast<T>(in.beta), scores, grad_positive);
            break;
        case SampledLoss::sampled_softmax:
            loss = sampled_softmax(positive, negatives, target, count, kept, log_q, scores, grad_positive);
    }
    scores[-1] = grad_positive;
    assign_scaled(grad, grad_positive, positive_row, width);
    if (!in.shared)
        for (int64_t j = 0; j < count; ++j) add_scaled(grad, scores[j], in.table + negatives[j] * width, width);
    return loss;
}

}  // namespace fastseq::FASTSEQ_ISA
