#pragma once

#include "isa.h"

namespace fastseq {

// Merges a tile of scores [rows, columns], of the items first_item ... first_item + columns - 1, into a heap of the k
// best of each row (best and ids [rows, k], at first -inf and -1). Tiles come in the order of their items; equal scores
// are kept by smaller id. The rows' seen items, seen[seen_offsets[r] .. seen_offsets[r + 1]), are set to -inf in the
// tile, and nothing that scores -inf is taken. Returns the lowest cell (row * columns + column) that is NaN, or -1.
FASTSEQ_KERNEL(template <typename T> int64_t, topk_merge,
               (T* scores, int64_t rows, int64_t columns, int64_t first_item, const int64_t* seen_offsets,
                const int64_t* seen, int64_t k, T* best, int64_t* ids, int threads))

// Sorts every row's heap, best first.
FASTSEQ_KERNEL(template <typename T> void, topk_sort,
               (int64_t rows, int64_t k, T* best, int64_t* ids, int threads))

}  // namespace fastseq
