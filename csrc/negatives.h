#pragma once

#include "isa.h"
#include "philox.h"

namespace fastseq {

// One call of the sampler (fastseq/ops/negatives.py): k negatives for each of `targets` targets.
struct NegativesProblem {
    const int64_t* users;         // [targets]
    const int64_t* positives;     // [targets]
    const int64_t* seen_offsets;  // [users + 1]
    const int64_t* seen_items;    // sorted and unique within a user
    int64_t targets, k, n_items;
    int64_t first;                // number of the first target
};

// Walker's table: column i holds item i below probability[i] (in units of 2^-32), item alias[i] from there on.
struct AliasTable {
    const int64_t* probability;
    const int64_t* alias;
};

// Writes out[targets, k]. Returns the first target that has nothing left to draw, or -1.
FASTSEQ_KERNEL(int64_t, negatives_uniform, (const NegativesProblem& problem, const Rng& rng, int64_t* out,
                                            int threads))
FASTSEQ_KERNEL(int64_t, negatives_weighted, (const NegativesProblem& problem, const AliasTable& table,
                                             const Rng& rng, int64_t* out, int threads))

// Writes out[size], drawn from the whole catalogue.
FASTSEQ_KERNEL(void, shared_negatives_uniform, (int64_t size, int64_t n_items, const Rng& rng, int64_t* out,
                                                int threads))
FASTSEQ_KERNEL(void, shared_negatives_weighted, (int64_t size, int64_t n_items, const AliasTable& table,
                                                 const Rng& rng, int64_t* out, int threads))

// Builds the table of an integer distribution: mass[n], which sums to n * 2^32 and is used up. Vose's method.
FASTSEQ_KERNEL(void, build_alias_table, (int64_t* mass, int64_t n, int64_t* probability, int64_t* alias))

}  // namespace fastseq
