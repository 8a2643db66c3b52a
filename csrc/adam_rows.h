#pragma once

#include "isa.h"

namespace fastseq {

// An embedding table under Adam of which a step touches few rows: see fastseq/ops/adam_rows.py.
template <typename T>
struct AdamTable {
    T *weight, *exp_avg, *exp_avg_sq;  // [rows, width]
    int32_t* last_step;                // [rows]: the step that a row is up to date with, 0 while its moments are zero
    const double* history;             // 8 numbers a step, those of step t at row offset + t
    int64_t rows, width, step, offset;
    double beta1, beta2, eps;
};

// Brings `count` distinct rows up to date, all where row is null, and takes the step where grad [count, width] is given.
FASTSEQ_KERNEL(template <typename T> void, adam_rows,
               (const AdamTable<T>& table, const int64_t* row, int64_t count, const T* grad, int threads))

}  // namespace fastseq
