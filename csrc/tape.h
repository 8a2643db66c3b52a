#pragma once

#include "isa.h"

namespace fastseq {

// The event tape: rows sorted by user, then time, then row. users [n] in [0, n_users) and items [n] are indices; times [n]
// may be null. Writes offsets [n_users + 1], tape [n] and, where times are given, tape_times [n].
// Returns -1, or the first row whose user is out of range (nothing but offsets is written then).
FASTSEQ_KERNEL(template <typename T> int64_t, build_tape,
               (const int32_t* users, const int32_t* items, const T* times, int64_t n, int64_t n_users,
                int64_t* offsets, int64_t* tape, T* tape_times, int threads))

}  // namespace fastseq
