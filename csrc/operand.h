// How the operands of a matrix product lie in memory while they are multiplied.
#pragma once

#include <algorithm>

#include "linear.h"
#include "register_tile.h"

namespace fastseq::FASTSEQ_ISA {

// What an operand of type S becomes while it is multiplied: itself, or pairs of bfloat16.
template <typename S, bool kPairs>
struct Operand {
    using T = S;
    static int64_t depth(int64_t values) { return values; }
    // to[k] = row[k]
    static void along(const S* row, int64_t values, T* to) { std::copy(row, row + values, to); }
    // to[l] = the values at depth k of `count` neighbours
    static void across(const S* from, int64_t step, int64_t k, int64_t, int64_t count, T* to) {
        std::copy(from + k * step, from + k * step + count, to);
    }
};

template <>
struct Operand<float, true> {
    using T = BFloat16Pair;
    static int64_t depth(int64_t values) { return (values + 1) / 2; }
    static void along(const float* row, int64_t values, T* to) {
#pragma omp simd
        for (int64_t k = 0; k < values / 2; ++k) to[k] = make_pair(row[2 * k], row[2 * k + 1]);
        if (values % 2 != 0) to[values / 2] = make_pair(row[values - 1], 0.0f);
    }
    static void across(const float* from, int64_t step, int64_t k, int64_t values, int64_t count, T* to) {
        const float* first = from + 2 * k * step;
        if (2 * k + 1 < values) {
            const float* second = first + step;
#pragma omp simd
            for (int64_t l = 0; l < count; ++l) to[l] = make_pair(first[l], second[l]);
        } else {
            for (int64_t l = 0; l < count; ++l) to[l] = make_pair(first[l], 0.0f);
        }
    }
};

// The columns [column, column + lanes) of the right operand as one panel, [k][column]; zero past the last.
template <typename O, typename S>
static void pack_panel(const Matrix<S>& b, int64_t column, int64_t columns, int64_t lanes, int64_t values,
                typename O::T* line, typename O::T* panel) {
    using T = typename O::T;
    const int64_t width = std::min(lanes, columns - column), depth = O::depth(values);
    if (b.row == 1) {
        for (int64_t k = 0; k < depth; ++k) {
            O::across(b.data + column, b.column, k, values, width, panel + k * lanes);
            std::fill(panel + k * lanes + width, panel + (k + 1) * lanes, T(0));
        }
        return;
    }
    for (int64_t l = 0; l < lanes; ++l) {
        const S* row = b.data + (column + l) * b.row;
        if (l >= width) {
            for (int64_t k = 0; k < depth; ++k) panel[k * lanes + l] = T(0);
        } else if (b.column == 1) {
            O::along(row, values, line);
            for (int64_t k = 0; k < depth; ++k) panel[k * lanes + l] = line[k];
        } else {
            for (int64_t k = 0; k < depth; ++k) O::across(row, b.column, k, values, 1, panel + k * lanes + l);
        }
    }
}

// C [rows, columns] = or += A B, one panel of B after the other. Row r of A begins at a + r * a_row and its element k
// lies k * a_step further; column c of B begins at b + c * b_column for the first of a panel, rows ldb apart.
template <int R, int C, typename T, typename S>
static void multiply(const T* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_column, int64_t ldb,
                     int64_t depth, int64_t rows, int64_t columns, bool add, S* out, int64_t out_row) {
    constexpr int64_t lanes = C * Simd<S>::lanes;
    alignas(64) S sums[R * lanes];
    const T* row[R];
    for (int64_t column = 0; column < columns; column += lanes) {
        const int64_t width = std::min(lanes, columns - column);
        for (int64_t i = 0; i < rows; i += R) {
            const int count = static_cast<int>(std::min<int64_t>(R, rows - i));
            for (int r = 0; r < count; ++r) row[r] = a + (i + r) * a_row;
            if (!add && out_row == lanes) {  // a tile's rows are rows of C: no copy
                product_of<C, R>(count, row, a_step, b + column * b_column, ldb, depth, out + i * out_row);
                continue;
            }
            product_of<C, R>(count, row, a_step, b + column * b_column, ldb, depth, sums);
            for (int r = 0; r < count; ++r) {
                S* to = out + (i + r) * out_row + column;
                if (add)
                    for (int64_t l = 0; l < width; ++l) to[l] += sums[r * lanes + l];
                else
                    for (int64_t l = 0; l < width; ++l) to[l] = sums[r * lanes + l];
            }
        }
    }
}

}  // namespace fastseq::FASTSEQ_ISA
