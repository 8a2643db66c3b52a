// 2^x as a loop over an array can be vectorised with: no branch, no call.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastseq::FASTSEQ_ISA {

template <typename T>
struct Exp2;
template <>
struct Exp2<float> {
    using Bits = uint32_t;
    static constexpr float lowest = -126.0f;      // where 2^x stops being a normal number
    static constexpr float round = 12582912.0f;   // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    static constexpr int mantissa = 23, degree = 7;
};
template <>
struct Exp2<double> {
    using Bits = uint64_t;
    static constexpr double lowest = -1022.0, round = 6755399441055744.0;
    static constexpr int mantissa = 52, degree = 13;
};

// The Taylor coefficient of 2^r at r^k: ln(2)^k / k!
constexpr double exp2_coefficient(int k) {
    double value = 1.0;
    for (int i = 1; i <= k; ++i) value *= 0.69314718055994530942 / i;
    return value;
}

// c[K] + r (c[K + 1] + r (...)), by recursion so that every coefficient is a constant.
template <typename T, int K>
static inline T exp2_horner(T r) {
    constexpr T c = static_cast<T>(exp2_coefficient(K));
    if constexpr (K == Exp2<T>::degree)
        return c;
    else
        return c + r * exp2_horner<T, K + 1>(r);
}

// 2^x for x <= 0 to about one unit in the last place; at least the smallest normal number. NaN stays NaN.
template <typename T>
static inline T exp2_negative(T x) {
    using Bits = typename Exp2<T>::Bits;
    x = x < Exp2<T>::lowest ? Exp2<T>::lowest : x;
    const T shifted = x + Exp2<T>::round;
    const T fraction = x - (shifted - Exp2<T>::round);  // in [-1/2, 1/2]
    const T power = exp2_horner<T, 0>(fraction);
    Bits whole, bits;
    std::memcpy(&whole, &shifted, sizeof(T));
    std::memcpy(&bits, &power, sizeof(T));
    bits += whole << Exp2<T>::mantissa;  // adds the integer part to the exponent
    T result;
    std::memcpy(&result, &bits, sizeof(T));
    return result;
}

}  // namespace fastseq::FASTSEQ_ISA
