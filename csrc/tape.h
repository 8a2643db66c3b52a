#pragma once

#include "isa.h"

namespace fastseq {

// The event tape: rows sorted by user, then time, then row. users [n] in [0, n_users) and items [n] are indices; times [n]
// may be null. Writes offsets [n_users + 1], tape [n] and, where times are given, tape_times [n].
// Returns -1, or the first row whose user is out of range (nothing but offsets is written then).
FASTSEQ_KERNEL(int64_t, build_tape_i64, (const int32_t* users, const int32_t* items, const int64_t* times, int64_t n,
                                         int64_t n_users, int64_t* offsets, int64_t* tape, int64_t* tape_times,
                                         int threads))
FASTSEQ_KERNEL(int64_t, build_tape_f64, (const int32_t* users, const int32_t* items, const double* times, int64_t n,
                                         int64_t n_users, int64_t* offsets, int64_t* tape, double* tape_times,
                                         int threads))

}  // namespace fastseq
