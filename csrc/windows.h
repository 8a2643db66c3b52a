#pragma once

#include "isa.h"

namespace fastseq {

// How windows are cut: at most max_len events of input, moved by stride (fastseq/data/windows.py).
struct WindowShape {
    int64_t max_len, stride;
    bool per_target, context;
};

// Where windows are written, or read: one entry per window.
struct WindowArrays {
    int64_t *user, *start, *stop, *first_target;
};

// What a gathered batch is written to (fastseq/data/batch.py). The l2 arrays may be null: no L2 term.
struct BatchArrays {
    int64_t* items;             // [T]
    int32_t* offsets;           // [B + 1]
    int64_t* users;             // [B]
    int64_t* rows;              // [N]
    int64_t* targets;           // [N]
    int64_t* target_sequences;  // [N]
    int64_t* l2_items;          // [R]
    float* l2_weights;          // [R]
};

// Number of windows of all users: user u trains on the tape rows [offsets[u], stop[u]).
FASTSEQ_KERNEL(int64_t, count_windows, (const int64_t* offsets, const int64_t* stop, int64_t users,
                                        const WindowShape& shape))

// Writes them, user by user and early to late.
FASTSEQ_KERNEL(void, pack_windows, (const int64_t* offsets, const int64_t* stop, int64_t users,
                                    const WindowShape& shape, const WindowArrays& out))

// Copies the windows order[0 ... count) into one batch. Returns the number of padding cells of the L2 term.
FASTSEQ_KERNEL(int64_t, gather_windows, (const int64_t* tape, const int64_t* user_offsets,
                                         const WindowArrays& windows, const int64_t* order, int64_t count,
                                         int64_t max_len, const BatchArrays& out))

}  // namespace fastseq
