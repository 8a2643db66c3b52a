// bfloat16 as the upper half of a float, two of them to 32 bits.
#pragma once

#include <cstdint>

#include "elementary.h"

namespace fastseq {

// Two values that follow each other along the depth of a product: the first in the low half.
enum BFloat16Pair : uint32_t {};

// Whether this processor multiplies pairs of bfloat16 (AVX512_BF16). Defined in bindings/module.cpp.
bool has_bfloat16_products();

// The nearest bfloat16, ties to even, in the upper half of the result. NaN stays NaN.
FASTSEQ_INLINE uint32_t round_to_bfloat16(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    return (x == x ? rounded : bits | 0x400000u) & 0xffff0000u;
}

FASTSEQ_INLINE BFloat16Pair make_pair(float first, float second) {
    return static_cast<BFloat16Pair>(round_to_bfloat16(first) >> 16 | round_to_bfloat16(second));
}

FASTSEQ_INLINE float low_of(BFloat16Pair pair) {
    const uint32_t bits = static_cast<uint32_t>(pair) << 16;
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

FASTSEQ_INLINE float high_of(BFloat16Pair pair) {
    const uint32_t bits = static_cast<uint32_t>(pair) & 0xffff0000u;
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

}  // namespace fastseq
