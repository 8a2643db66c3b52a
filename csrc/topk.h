#pragma once

#include "isa.h"

namespace fastseq {

// The k best of a part of the items for every user, added to what best and ids [users, k] hold of the items before it:
// a heap of each user, at first -inf and -1, and after the last part, `last`, the result, best first.
template <typename T>
struct Topk {
    const T *h, *items, *bias;  // [users, depth], [count, depth]; bias [count] or null
    // What is read in place of items for a few users, or null: items[i] is about scales[i] * codes[i], [count, padded].
    const int8_t* codes;
    const float* scales;
    const int64_t *seen_offsets, *seen;  // [users + 1]; ids that are left out, in any order
    int64_t users, count, depth, padded, first_item, k;
    bool last;
    T* best;
    int64_t* ids;
    int threads;
};

// Returns the first score, user * count + place of the item, that is NaN, or -1. Seen ones are not looked at.
FASTSEQ_KERNEL(template <typename T> int64_t, topk, (const Topk<T>& a))

}  // namespace fastseq
