// The two matrix products of a linear layer, blocked for registers and cache.
//
// The right operand is packed into panels as wide as a register tile; then every thread runs blocks of rows against one
// panel after the other. All types share the loops: an Operand says what is multiplied, a float, a double, or a pair
// of bfloat16.
#include "linear.h"

#include <omp.h>

#include <algorithm>
#include <type_traits>

#include "operand.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

// Rows of a block: it stays in the second cache beside a panel.
constexpr int64_t kBlockRows = 8 * kSumRows;
// Rows of the smaller side, and products that are worth one more thread, where sums are made without panels.
constexpr int64_t kFewRows = 16, kThreadProducts = 1 << 15;
constexpr int64_t kBlockDepth = 256, kStripRows = 8 * kColumnRows;

// sums[r] = Σ_k rows[r][k] * b[k]
template <typename T>
FASTSEQ_INLINE void four_dots(const T* const* rows, const T* b, int64_t depth, T* sums) {
    using Vector = typename Simd<T>::Vector;
    constexpr int lanes = Simd<T>::lanes;
    Vector sum[4] = {}, left, right;
    int64_t k = 0;
    for (; k + lanes <= depth; k += lanes) {
        __builtin_memcpy(&right, b + k, sizeof right);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            __builtin_memcpy(&left, rows[r] + k, sizeof left);
            sum[r] += left * right;
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
        sums[r] = sum_of_lanes<T>(sum[r]);
        for (int64_t j = k; j < depth; ++j) sums[r] += rows[r][j] * b[j];
    }
}

// The product where one side has few rows, as the scores of one user have: packing a panel would cost more than the
// sums, which read the other side once, as it lies. The threads divide that other side.
template <typename T>
void product_of_few(const Product<T>& a) {
    const bool few_rows = a.rows < a.columns;
    const Matrix<T> left{a.a, a.a_row, 1}, few = few_rows ? left : a.b, many = few_rows ? a.b : left;
    const int64_t few_count = few_rows ? a.rows : a.columns, few_step = few_rows ? a.columns : 1;
    const int64_t many_count = few_rows ? a.columns : a.rows, many_step = few_rows ? 1 : a.columns;
    const int64_t work = a.rows * a.columns * a.depth;
    const int threads = static_cast<int>(std::min<int64_t>(a.threads, 1 + work / kThreadProducts));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < many_count; first += 4) {
        const int64_t count = std::min<int64_t>(4, many_count - first);
        const T* rows[4];
        for (int64_t r = 0; r < 4; ++r) rows[r] = many.data + (first + std::min(r, count - 1)) * many.row;
        for (int64_t f = 0; f < few_count; ++f) {
            T sums[4];
            four_dots(rows, few.data + f * few.row, a.depth, sums);
            T* to = a.out + f * few_step + first * many_step;
            const T* bias = a.bias == nullptr ? nullptr : a.bias + (few_rows ? first : f);
            for (int64_t r = 0; r < count; ++r)
                to[r * many_step] = bias == nullptr ? sums[r] : sums[r] + bias[few_rows ? r : 0];
        }
    }
}

template <typename O, typename S>
void product(const Product<S>& a) {
    using T = typename O::T;
    constexpr int64_t lanes = kSumVectors * Simd<S>::lanes;
    constexpr bool converts = !std::is_same_v<S, T>;
    if constexpr (!converts)
        if (a.b.column == 1 && std::min(a.rows, a.columns) <= kFewRows) return product_of_few(a);
    const int64_t depth = O::depth(a.depth);
    const int64_t panels = (a.columns + lanes - 1) / lanes, blocks = (a.rows + kBlockRows - 1) / kBlockRows;
    // Few rows: several threads share a block, each with panels of its own.
    const int64_t parts = std::max<int64_t>(1, std::min(panels, blocks < 2 * a.threads ? 2 * a.threads / blocks : 1));
    Buffer<T> packed(panels * depth * lanes);                         // [panel][k][column]
    Buffer<T> own(a.threads * depth * (converts ? kBlockRows : 1));  // a block of rows, or one, for each thread
#pragma omp parallel num_threads(a.threads)
    {
        T* block_rows = own.get() + omp_get_thread_num() * depth * (converts ? kBlockRows : 1);
#pragma omp for schedule(static)
        for (int64_t p = 0; p < panels; ++p)
            pack_panel<O>(a.b, p * lanes, a.columns, lanes, a.depth, block_rows, packed.get() + p * depth * lanes);
        alignas(64) S sums[kSumRows * lanes];
        const T* rows[kSumRows];
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < blocks * parts; ++task) {
            const int64_t first = task / parts * kBlockRows, last = std::min(first + kBlockRows, a.rows);
            const int64_t part = task % parts;
            if constexpr (converts)
                for (int64_t i = first; i < last; ++i)
                    O::along(a.a + i * a.a_row, a.depth, block_rows + (i - first) * depth);
            for (int64_t p = panels * part / parts; p < panels * (part + 1) / parts; ++p) {
                const int64_t column = p * lanes, width = std::min(lanes, a.columns - column);
                for (int64_t i = first; i < last; i += kSumRows) {
                    const int count = static_cast<int>(std::min<int64_t>(kSumRows, last - i));
                    for (int r = 0; r < count; ++r) {
                        if constexpr (converts)
                            rows[r] = block_rows + (i - first + r) * depth;
                        else
                            rows[r] = a.a + (i + r) * a.a_row;
                    }
                    product_of<kSumVectors, kSumRows>(count, rows, 1, packed.get() + p * depth * lanes, lanes, depth,
                                                      sums);
                    for (int r = 0; r < count; ++r) {
                        S* to = a.out + (i + r) * a.columns + column;
                        if (a.bias == nullptr)
                            for (int64_t l = 0; l < width; ++l) to[l] = sums[r * lanes + l];
                        else
                            for (int64_t l = 0; l < width; ++l) to[l] = sums[r * lanes + l] + a.bias[column + l];
                    }
                }
            }
        }
    }
}

// Each thread has panels of its own (few panels: rows of its own too) and goes down the depth in chunks that stay in
// cache, added in order.
template <typename O, typename S>
void transposed_product(const TransposedProduct<S>& a) {
    using T = typename O::T;
    constexpr int64_t lanes = kColumnVectors * Simd<S>::lanes;
    constexpr bool converts = !std::is_same_v<S, T>;
    const int64_t depth = O::depth(a.depth), panels = (a.columns + lanes - 1) / lanes;
    const int64_t tiles = (a.rows + kColumnRows - 1) / kColumnRows;
    const int64_t column_parts = std::min<int64_t>(panels, a.threads);
    const int64_t row_parts = std::min(tiles, (a.threads + column_parts - 1) / column_parts);
    const int64_t most = (panels + column_parts - 1) / column_parts;
    Buffer<T> own(a.threads * kBlockDepth * (most * lanes + (converts ? kStripRows : 0)));
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int64_t task = 0; task < column_parts * row_parts; ++task) {
        T* packed = own.get() + omp_get_thread_num() * kBlockDepth * (most * lanes + (converts ? kStripRows : 0));
        T* converted = packed + kBlockDepth * most * lanes;
        const int64_t part = task / row_parts, first_panel = panels * part / column_parts,
                      last_panel = panels * (part + 1) / column_parts;
        const int64_t first_tile = tiles * (task % row_parts) / row_parts,
                      last_tile = tiles * (task % row_parts + 1) / row_parts;
        alignas(64) S sums[kColumnRows * lanes];
        const T* columns[kColumnRows];
        for (int64_t k = 0; k < depth; k += kBlockDepth) {
            const int64_t size = std::min(kBlockDepth, depth - k);
            for (int64_t p = first_panel; p < last_panel; ++p) {
                const int64_t column = p * lanes, width = std::min(lanes, a.columns - column);
                T* panel = packed + (p - first_panel) * kBlockDepth * lanes;
                for (int64_t j = 0; j < size; ++j) {
                    O::across(a.b + column, a.columns, k + j, a.depth, width, panel + j * lanes);
                    std::fill(panel + j * lanes + width, panel + (j + 1) * lanes, T(0));
                }
            }
            for (int64_t i = first_tile; i < last_tile; ++i) {
                const int64_t row = i * kColumnRows, in_strip = (i - first_tile) * kColumnRows % kStripRows;
                const int count = static_cast<int>(std::min<int64_t>(kColumnRows, a.rows - row));
                if (converts && in_strip == 0)
                    for (int64_t j = 0; j < size; ++j)
                        O::across(a.a + row, a.rows, k + j, a.depth, std::min(kStripRows, a.rows - row),
                                  converted + j * kStripRows);
                for (int r = 0; r < count; ++r) {
                    if constexpr (converts)
                        columns[r] = converted + in_strip + r;
                    else
                        columns[r] = a.a + k * a.rows + row + r;
                }
                for (int64_t p = first_panel; p < last_panel; ++p) {
                    product_of<kColumnVectors, kColumnRows>(count, columns, converts ? kStripRows : a.rows,
                                                            packed + (p - first_panel) * kBlockDepth * lanes, lanes,
                                                            size, sums);
                    const int64_t width = std::min(lanes, a.columns - p * lanes);
                    for (int r = 0; r < count; ++r) {
                        S* to = a.out + (row + r) * a.columns + p * lanes;
                        for (int64_t l = 0; l < width; ++l) to[l] = (k == 0 ? S(0) : to[l]) + sums[r * lanes + l];
                    }
                }
            }
        }
    }
    if (depth == 0) std::fill(a.out, a.out + a.rows * a.columns, S(0));
}

}  // namespace

void product_f32(const Product<float>& a) { product<Operand<float, false>>(a); }
void product_bf16(const Product<float>& a) { product<Operand<float, true>>(a); }
void product_f64(const Product<double>& a) { product<Operand<double, false>>(a); }
void transposed_product_f32(const TransposedProduct<float>& a) { transposed_product<Operand<float, false>>(a); }
void transposed_product_bf16(const TransposedProduct<float>& a) { transposed_product<Operand<float, true>>(a); }
void transposed_product_f64(const TransposedProduct<double>& a) { transposed_product<Operand<double, false>>(a); }

}  // namespace fastseq::FASTSEQ_ISA
