// exp, log1p, sigmoid, tanh and softplus as straight-line code, so that a loop over them vectorises on every
// instruction set. Arguments are bounded: no overflow, and a NaN comes through as NaN.
//
// exp(x) = 2^n (1 + p) with n = round(x / ln 2) and p = expm1(x - n ln 2) by its Taylor series on [-ln2/2, ln2/2].
// log1p(u) = 2 atanh(u / (2 + u)) by its series, for u in [0, 1]. Errors: a few units in the last place.
#pragma once

#include <cstdint>

namespace fastseq {

#define FASTSEQ_INLINE static inline __attribute__((always_inline))

template <typename T>
struct Elementary;

template <>
struct Elementary<float> {
    using Bits = uint32_t;
    static constexpr int mantissa = 23, bias = 127, exp_terms = 7, log_terms = 8;
    static constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    static constexpr float log2e = 1.44269504088896341f, ln2_high = 0.693359375f, ln2_low = -2.12194440054690583e-4f;
    static constexpr float exp_bound = 87.0f, tanh_bound = 10.0f;
};

template <>
struct Elementary<double> {
    using Bits = uint64_t;
    static constexpr int mantissa = 52, bias = 1023, exp_terms = 14, log_terms = 18;
    static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr double log2e = 1.44269504088896341, ln2_high = 0.693145751953125,
                            ln2_low = 1.42860682030941723212e-6;
    static constexpr double exp_bound = 700.0, tanh_bound = 20.0;
};

constexpr double inverse_factorial(int k) { return k <= 1 ? 1.0 : inverse_factorial(k - 1) / k; }

// scale = 2^n and p with exp(x) = scale + scale * p; |x| <= exp_bound.
template <typename T>
FASTSEQ_INLINE void exp_parts(T x, T& scale, T& p) {
    using E = Elementary<T>;
    const T shifted = x * E::log2e + E::round;
    const T n = shifted - E::round;
    const T r = (x - n * E::ln2_high) - n * E::ln2_low;
    T q = T(inverse_factorial(E::exp_terms));
#pragma GCC unroll 16
    for (int k = E::exp_terms - 1; k >= 1; --k) q = q * r + T(inverse_factorial(k));
    p = q * r;
    typename E::Bits bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + E::bias) << E::mantissa;
    __builtin_memcpy(&scale, &bits, sizeof bits);
}

// exp(x), with x limited to ±exp_bound.
template <typename T>
FASTSEQ_INLINE T bounded_exp(T x) {
    using E = Elementary<T>;
    T scale, p;
    x = x > E::exp_bound ? E::exp_bound : x;
    x = x < -E::exp_bound ? -E::exp_bound : x;
    exp_parts(x, scale, p);
    return scale + scale * p;
}

// log(1 + u) for 0 <= u <= 1.
template <typename T>
FASTSEQ_INLINE T log1p_unit(T u) {
    using E = Elementary<T>;
    const T z = u / (T(2) + u), z2 = z * z;
    T q = T(0);
#pragma GCC unroll 20
    for (int k = E::log_terms; k >= 0; --k) q = q * z2 + T(2) / T(2 * k + 1);
    return q * z;
}

template <typename T>
FASTSEQ_INLINE T sigmoid(T x) {
    return T(1) / (T(1) + bounded_exp(-x));
}

// sign(x) e / (e + 2) with e = expm1(2 |x|): no cancellation near 0.
template <typename T>
FASTSEQ_INLINE T tanh_vectorised(T x) {
    using E = Elementary<T>;
    T a = x < T(0) ? -x : x, scale, p;
    a = a > E::tanh_bound ? E::tanh_bound : a;
    exp_parts(a + a, scale, p);
    const T e = scale * p + (scale - T(1));
    const T y = e / (e + T(2));
    return x < T(0) ? -y : y;
}

// log(1 + exp(x)) and its derivative sigmoid(x) from one exponential.
template <typename T>
FASTSEQ_INLINE T softplus(T x, T& derivative) {
    const T a = x < T(0) ? -x : x;
    const T e = bounded_exp(-a);
    const T y = T(1) / (T(1) + e);
    derivative = x < T(0) ? e * y : y;
    return (x > T(0) ? x : T(0)) + log1p_unit(e);
}

}  // namespace fastseq
