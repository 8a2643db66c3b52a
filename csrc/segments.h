// Rows grouped by an integer key: a stable radix sort, so that sums per key run in the order of the rows.
#pragma once

#include <cstdint>

namespace fastseq {

// order becomes the rows 0 ... rows - 1 sorted by keys[row], equal keys by row; 0 <= keys[row] < limit. Serial.
// scratch: [rows].
static inline void sort_by_key(const int64_t* keys, int64_t rows, int64_t limit, int32_t* order, int32_t* scratch) {
    constexpr int bits = 11;
    constexpr int64_t mask = (int64_t(1) << bits) - 1;
    int passes = 0;
    while (passes == 0 || (limit - 1) >> (passes * bits) > 0) ++passes;
    int32_t* from = passes % 2 ? scratch : order;  // so that the last pass writes into order
    int32_t* to = passes % 2 ? order : scratch;
    for (int64_t row = 0; row < rows; ++row) from[row] = static_cast<int32_t>(row);
    for (int pass = 0; pass < passes; ++pass) {
        const int shift = pass * bits;
        int64_t start[mask + 2] = {0};
        for (int64_t row = 0; row < rows; ++row) ++start[((keys[row] >> shift) & mask) + 1];
        for (int64_t digit = 0; digit <= mask; ++digit) start[digit + 1] += start[digit];
        for (int64_t i = 0; i < rows; ++i) to[start[(keys[from[i]] >> shift) & mask]++] = from[i];
        int32_t* swap = from;
        from = to;
        to = swap;
    }
}

// starts[s] becomes the place in order where segment s of equal keys begins; starts[count] is rows. Returns count.
// starts: [rows + 1].
static inline int64_t segment_starts(const int64_t* keys, const int32_t* order, int64_t rows, int32_t* starts) {
    int64_t count = 0;
    for (int64_t i = 0; i < rows; ++i)
        if (i == 0 || keys[order[i]] != keys[order[i - 1]]) starts[count++] = static_cast<int32_t>(i);
    starts[count] = static_cast<int32_t>(rows);
    return count;
}

}  // namespace fastseq
