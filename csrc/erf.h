// The error function as straight-line code, so that a loop over it vectorises; and GELU with its derivative.
#pragma once

#include <cmath>

#include "elementary.h"

namespace fastseq {

// erf(x) = x P(x²) / Q(x²) for |x| < 3.92, beyond which it rounds to ±1. The coefficients minimise the relative
// error, 2e-8 before rounding; a few units in the last place after it.
FASTSEQ_INLINE float erf_vectorised(float x) {
    constexpr float end = 3.92f;
    const float a = x < -end ? -end : (x > end ? end : x), u = a * a;
    float p = 2.050073105e-06f;
    p = p * u + 2.848628875e-04f;
    p = p * u + 3.765077136e-03f;
    p = p * u + 5.274701750e-02f;
    p = p * u + 1.903949826e-01f;
    p = p * u + 1.128379146e+00f;
    float q = 3.809053352e-05f;
    q = q * u + 1.162390539e-03f;
    q = q * u + 1.496813622e-02f;
    q = q * u + 1.141041973e-01f;
    q = q * u + 5.020659037e-01f;
    q = q * u + 1.0f;
    const float y = a * p / q;
    return x < -end ? -1.0f : (x > end ? 1.0f : y);
}

FASTSEQ_INLINE double erf_vectorised(double x) { return std::erf(x); }

// Φ(z), the normal distribution function.
template <typename T>
FASTSEQ_INLINE T normal_cdf(T z) {
    return T(0.5) + T(0.5) * erf_vectorised(z * T(0.70710678118654752440));
}

// gelu(z) = z Φ(z) (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016).
template <typename T>
FASTSEQ_INLINE T gelu(T z) {
    return z * normal_cdf(z);
}

// gelu'(z) = Φ(z) + z φ(z), φ the normal density. bounded_exp never reaches 0, which a vast z would multiply; from 40 on
// the second summand is below every rounding of the first.
template <typename T>
FASTSEQ_INLINE T gelu_derivative(T z) {
    const T a = z < T(-40) ? T(-40) : (z > T(40) ? T(40) : z);
    return normal_cdf(z) + a * bounded_exp(T(-0.5) * a * a) * T(0.39894228040143267794);
}

}  // namespace fastseq
