// Causal attention over jagged sequences, one (sequence, head) at a time.
//
// A block of 16 queries lives in the lanes of a vector, so the scores of a block are a tile [keys, 16] up to the
// diagonal: softmax statistics need no horizontal sums, one philox_rows() call gives the mask of eight keys, and all
// five products are the same small gemm. The backward pass computes the tile again from the saved log-sum-exp.
// Scores are kept in units of log 2, so that exponentials are powers of two.
#include "attention.h"

#include <omp.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "draw.h"
#include "exp2.h"
#include "small_gemm.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;

static_assert(kQueries == kPhiloxRows, "the mask of a block is one philox_rows() call for every eight keys");

// Hands out consecutive pieces of one thread's scratch memory.
template <typename T>
struct Scratch {
    T* next;
    T* take(int64_t size) {
        T* piece = next;
        next += size;
        return piece;
    }
};

// to [rows_padded, padded] = from [rows, width] * factor, zero elsewhere.
template <typename T>
void pack_rows(HeadRows<T> from, int64_t rows, int64_t rows_padded, int64_t width, int64_t padded, T factor, T* to) {
    for (int64_t i = 0; i < rows; ++i, to += padded) {
        for (int64_t d = 0; d < width; ++d) to[d] = from.data[i * from.stride + d] * factor;
        for (int64_t d = width; d < padded; ++d) to[d] = T(0);
    }
    std::memset(to, 0, static_cast<size_t>((rows_padded - rows) * padded) * sizeof(T));
}

// to [width, 16] = the transpose of from [rows, width] * factor, zero in the lanes that have no row. Four rows at a time
// make short contiguous stores, where a loop along one row would scatter.
template <typename T>
void pack_lanes(HeadRows<T> from, int64_t rows, int64_t width, T factor, T* to) {
    for (int64_t r = 0; r < kQueries; r += 4) {
        if (r + 4 <= rows) {
            const T* row[4];
            for (int i = 0; i < 4; ++i) row[i] = from.at(r + i, 0).data;
            for (int64_t d = 0; d < width; ++d)
                for (int i = 0; i < 4; ++i) to[d * kQueries + r + i] = row[i][d] * factor;
            continue;
        }
        for (int64_t i = r; i < r + 4; ++i)
            for (int64_t d = 0; d < width; ++d)
                to[d * kQueries + i] = i < rows ? from.at(i, 0).data[d] * factor : T(0);
    }
}

// to [rows, width], rows `stride` apart, = from [rows, padded] * factor.
template <typename T>
void unpack_rows(const T* from, int64_t padded, int64_t rows, int64_t width, T factor, T* to, int64_t stride) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t d = 0; d < width; ++d) to[r * stride + d] = from[r * padded + d] * factor;
}

// Largest score of each query among the keys it may see.
template <typename T>
void largest(const T* scores, int64_t keys, int64_t first, T* largest) {
    for (int r = 0; r < kQueries; ++r) largest[r] = -std::numeric_limits<T>::infinity();
    for (int64_t j = 0; j < keys; ++j) {
        const T distance = static_cast<T>(j - first);  // the first query lane that sees key j
#pragma omp simd
        for (int r = 0; r < kQueries; ++r) {
            const T score = scores[j * kQueries + r];
            largest[r] = score > largest[r] && distance <= static_cast<T>(r) ? score : largest[r];
        }
    }
}

// The mask of a block of queries. A sequence begins anywhere in the eight keys of a call, so two calls' are kept.
class BlockMask {
  public:
    // row: of the first query, key: the first that is asked for; both rows of the batch.
    BlockMask(const Dropout& dropout, int64_t row, int64_t key)
        : dropout_(dropout), row_(static_cast<uint32_t>(row)), next_(key / 8) {}

    // Draws up to `key`; that and the fifteen before it, where they were asked for, may then be read.
    void reach(int64_t key) {
        for (; next_ <= key / 8; ++next_) {
            alignas(64) uint32_t words[4][kPhiloxRows];
            philox_rows(dropout_.rng, static_cast<uint32_t>(next_), row_, dropout_.site, words);
            uint32_t(*low)[kPhiloxRows] = values_ + next_ % 2 * 8;
            for (int w = 0; w < 4; ++w, low += 2)
#pragma omp simd
                for (int r = 0; r < kPhiloxRows; ++r) {
                    low[0][r] = words[w][r] << 16;
                    low[1][r] = words[w][r];
                }
        }
    }

    // The values of a key for the queries, each in the upper half of its word (below them is what decides nothing).
    const uint32_t* values(int64_t key) const { return values_[key % 16]; }

  private:
    const Dropout& dropout_;
    uint32_t row_;
    int64_t next_;  // the first block of keys that is not drawn
    alignas(64) uint32_t values_[16][kPhiloxRows];
};

// scores <- 2^(score - largest), zero where masked or dropped; sum: before dropping.
template <typename T, bool kDropout>
void exponentiate(const Dropout& dropout, T* scores, int64_t keys, int64_t start, int64_t first, const T* largest,
                  T* sum) {
    BlockMask mask(dropout, start + first, start);
    const uint32_t threshold = static_cast<uint32_t>(dropout.threshold) << 16;
    for (int r = 0; r < kQueries; ++r) sum[r] = T(0);
    for (int64_t j = 0; j < keys; j += 4) {
        const uint32_t* values[4];
        if (kDropout) mask.reach(start + j + 3);
        for (int g = 0; g < 4; ++g) values[g] = mask.values(start + j + g);
        const T distance = static_cast<T>(j - first);
        T* tile = scores + j * kQueries;
#pragma omp simd
        for (int r = 0; r < kQueries; ++r) {
            T part = T(0);
            for (int g = 0; g < 4; ++g) {
                const T power = exp2_negative(tile[g * kQueries + r] - largest[r]);
                const T weight = distance + static_cast<T>(g) <= static_cast<T>(r) ? power : T(0);
                part += weight;
                tile[g * kQueries + r] = kDropout && values[g][r] < threshold ? T(0) : weight;
            }
            sum[r] += part;
        }
    }
}

// From the tiles of scores and of d(out) vᵀ / (1 - p): scores <- the dropped probabilities, products <- d(scores).
// delta, the sum over keys of probability times its gradient, is taken from the tile and not from out · d(out): where
// one key has all the weight the two terms of d(scores) then cancel exactly, whatever type `out` was rounded to.
template <typename T, bool kDropout>
void differentiate(const Dropout& dropout, T* scores, T* products, int64_t keys, int64_t start, int64_t first,
                   const T* lse) {
    BlockMask mask(dropout, start + first, start);
    const uint32_t threshold = static_cast<uint32_t>(dropout.threshold) << 16;
    alignas(64) T delta[kQueries] = {};
    for (int64_t j = 0; j < keys; j += 4) {
        const uint32_t* values[4];
        if (kDropout) mask.reach(start + j + 3);
        for (int g = 0; g < 4; ++g) values[g] = mask.values(start + j + g);
        const T distance = static_cast<T>(j - first);
        T* tile = scores + j * kQueries;
        T* product = products + j * kQueries;
#pragma omp simd
        for (int r = 0; r < kQueries; ++r) {
            T part = T(0);
            for (int g = 0; g < 4; ++g) {
                const int64_t cell = g * kQueries + r;
                const T power = exp2_negative(tile[cell] - lse[r]);
                const T weight = distance + static_cast<T>(g) <= static_cast<T>(r) ? power : T(0);
                const bool dropped = kDropout && values[g][r] < threshold;
                tile[cell] = dropped ? -weight : weight;  // the sign remembers the mask
                product[cell] = dropped ? T(0) : product[cell];
                part += weight * product[cell];
            }
            delta[r] += part;
        }
    }
    for (int64_t j = 0; j < keys; ++j) {
        T* tile = scores + j * kQueries;
        T* product = products + j * kQueries;
#pragma omp simd
        for (int r = 0; r < kQueries; ++r) {
            const T weight = tile[r] < T(0) ? -tile[r] : tile[r];
            product[r] = weight * (product[r] - delta[r]);
            tile[r] = tile[r] < T(0) ? T(0) : tile[r];
        }
    }
}

template <typename T, bool kDropout>
void forward_head(const AttentionBatch& batch, const AttentionTensors<T>& x, int64_t sequence, int64_t head,
                  Scratch<T> scratch) {
    const int64_t start = batch.offsets[sequence], length = batch.offsets[sequence + 1] - start;
    const int64_t heads = batch.heads, width = batch.width, padded = padded_width(width), stride = heads * width;
    const int64_t length_padded = (length + kGemmRows - 1) / kGemmRows * kGemmRows;
    const Dropout dropout = batch.dropout.of_head(head);
    const T factor = static_cast<T>(batch.scale * kLog2E), keep_scale = static_cast<T>(batch.dropout.scale);
    const HeadRows<T> q = x.q.at(start, head * width), k = x.k.at(start, head * width), v = x.v.at(start, head * width);
    T* keys = scratch.take(length_padded * padded);
    T* values = scratch.take(length_padded * padded);
    T* scores = scratch.take(padded_length(length) * kQueries);
    T* queries = scratch.take(kQueries * padded);
    T* result = scratch.take(kQueries * padded);
    pack_rows(k, length, length_padded, width, padded, T(1), keys);
    pack_rows(v, length, length_padded, width, padded, T(1), values);
    alignas(64) T top[kQueries], sum[kQueries];
    for (int64_t first = 0; first < length; first += kQueries) {
        const int64_t rows = length - first < kQueries ? length - first : kQueries;
        const int64_t seen = first + kQueries < length_padded ? first + kQueries : length_padded;
        const int64_t row = start + first;
        pack_lanes(q.at(first, 0), rows, width, factor, queries);
        gemm<T>(seen, kQueries, width, {keys, padded, 1}, queries, kQueries, scores, kQueries, false);
        largest(scores, seen, first, top);
        exponentiate<T, kDropout>(dropout, scores, seen, start, first, top, sum);
        gemm<T>(kQueries, padded, seen, {scores, 1, kQueries}, values, padded, result, padded, false);
        for (int64_t r = 0; r < rows; ++r) {
            x.lse[(row + r) * heads + head] = top[r] * static_cast<T>(kLn2) + std::log(sum[r]);
            unpack_rows(result + r * padded, padded, 1, width, keep_scale / sum[r],
                        x.out + (row + r) * stride + head * width, stride);
        }
    }
}

template <typename T, bool kDropout>
void backward_head(const AttentionBatch& batch, const AttentionTensors<T>& x, int64_t sequence, int64_t head,
                   Scratch<T> scratch) {
    const int64_t start = batch.offsets[sequence], length = batch.offsets[sequence + 1] - start;
    const int64_t heads = batch.heads, width = batch.width, padded = padded_width(width), stride = heads * width;
    const int64_t length_padded = (length + kGemmRows - 1) / kGemmRows * kGemmRows, at = start * stride + head * width;
    const Dropout dropout = batch.dropout.of_head(head);
    const T scale = static_cast<T>(batch.scale), keep_scale = static_cast<T>(batch.dropout.scale);
    const HeadRows<T> q = x.q.at(start, head * width), k = x.k.at(start, head * width), v = x.v.at(start, head * width);
    const HeadRows<T> grad{x.grad + at, stride};
    T* keys = scratch.take(length_padded * padded);
    T* values = scratch.take(length_padded * padded);
    T* key_sums = scratch.take(length_padded * padded);
    T* value_sums = scratch.take(length_padded * padded);
    T* scores = scratch.take(padded_length(length) * kQueries);
    T* products = scratch.take(padded_length(length) * kQueries);
    T* query_lanes = scratch.take(kQueries * padded);
    T* query_rows = scratch.take(kQueries * padded);
    T* grad_lanes = scratch.take(kQueries * padded);
    T* grad_rows = scratch.take(kQueries * padded);
    T* query_sums = scratch.take(kQueries * padded);
    pack_rows(k, length, length_padded, width, padded, T(1), keys);
    pack_rows(v, length, length_padded, width, padded, T(1), values);
    std::memset(key_sums, 0, static_cast<size_t>(length_padded * padded) * sizeof(T));
    std::memset(value_sums, 0, static_cast<size_t>(length_padded * padded) * sizeof(T));
    alignas(64) T log_sum[kQueries];
    for (int64_t first = 0; first < length; first += kQueries) {
        const int64_t rows = length - first < kQueries ? length - first : kQueries;
        const int64_t seen = first + kQueries < length_padded ? first + kQueries : length_padded;
        const int64_t row = start + first;
        for (int64_t r = 0; r < kQueries; ++r)
            log_sum[r] = r < rows ? x.saved_lse[(row + r) * heads + head] * static_cast<T>(kLog2E) : T(0);
        pack_lanes(q.at(first, 0), rows, width, static_cast<T>(batch.scale * kLog2E), query_lanes);
        pack_rows(q.at(first, 0), rows, kQueries, width, padded, scale, query_rows);
        pack_lanes(grad.at(first, 0), rows, width, keep_scale, grad_lanes);
        pack_rows(grad.at(first, 0), rows, kQueries, width, padded, keep_scale, grad_rows);
        gemm<T>(seen, kQueries, width, {keys, padded, 1}, query_lanes, kQueries, scores, kQueries, false);
        gemm<T>(seen, kQueries, width, {values, padded, 1}, grad_lanes, kQueries, products, kQueries, false);
        differentiate<T, kDropout>(dropout, scores, products, seen, start, first, log_sum);
        gemm<T>(seen, padded, kQueries, {scores, kQueries, 1}, grad_rows, padded, value_sums, padded, true);
        gemm<T>(seen, padded, kQueries, {products, kQueries, 1}, query_rows, padded, key_sums, padded, true);
        gemm<T>(kQueries, padded, seen, {products, 1, kQueries}, keys, padded, query_sums, padded, false);
        unpack_rows(query_sums, padded, rows, width, scale, x.grad_q + at + first * stride, stride);
    }
    unpack_rows(key_sums, padded, length, width, T(1), x.grad_k + at, stride);
    unpack_rows(value_sums, padded, length, width, T(1), x.grad_v + at, stride);
}

// Calls function(sequence, head, scratch) for every sequence and head, long sequences first.
template <typename T, typename Function>
void for_each_head(const AttentionBatch& batch, const AttentionTensors<T>& x, Function function) {
#pragma omp parallel for num_threads(batch.threads) schedule(dynamic)
    for (int64_t task = 0; task < batch.sequences * batch.heads; ++task)
        function(batch.order[task / batch.heads], task % batch.heads,
                 Scratch<T>{x.scratch + omp_get_thread_num() * x.scratch_size});
}

// ---- one query per sequence: bound by reading k and v once, so plain vectorised loops over the head dimension ----

template <typename T>
T dot(const T* a, const T* b, int64_t size) {
    T sum = T(0);
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; ++i) sum += a[i] * b[i];
    return sum;
}

template <typename T>
void add_scaled(T factor, const T* x, T* sum, int64_t size) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) sum[i] += factor * x[i];
}

// The mask of one row of queries, drawn 128 keys at a time.
class RowMask {
   public:
    // row: of the query, which is the last that may be asked for.
    RowMask(const Dropout& dropout, int64_t row) : dropout_(dropout), row_(row) {}
    // Whether a key, by its row of the batch, is dropped; keys are asked for in order.
    bool dropped(int64_t key) {
        if (dropout_.threshold == 0) return false;
        if (key >= first_ + kDrawn) {
            first_ = key / 8 * 8;
            const int64_t left = row_ + 1 - first_;
            draw(dropout_, first_, row_, static_cast<int>(left < kDrawn ? left : kDrawn), values_);
        }
        return values_[key - first_] < dropout_.threshold;
    }

   private:
    const Dropout dropout_;
    const int64_t row_;
    int64_t first_ = -kDrawn;  // the column of values_[0]
    alignas(64) uint16_t values_[kDrawn];
};

}  // namespace

template <typename T>
void causal_attention(const AttentionBatch& batch, const AttentionTensors<T>& x) {
    const auto kernel = batch.dropout.threshold != 0 ? forward_head<T, true> : forward_head<T, false>;
    for_each_head(batch, x, [&](int64_t sequence, int64_t head, Scratch<T> scratch) {
        kernel(batch, x, sequence, head, scratch);
    });
}

template <typename T>
void causal_attention_backward(const AttentionBatch& batch, const AttentionTensors<T>& x) {
    const auto kernel = batch.dropout.threshold != 0 ? backward_head<T, true> : backward_head<T, false>;
    for_each_head(batch, x, [&](int64_t sequence, int64_t head, Scratch<T> scratch) {
        kernel(batch, x, sequence, head, scratch);
    });
}

template <typename T>
void last_query_attention(const AttentionBatch& batch, const AttentionTensors<T>& x) {
    const int64_t width = batch.width, heads = batch.heads;
    const T factor = static_cast<T>(batch.scale * kLog2E), keep_scale = static_cast<T>(batch.dropout.scale);
    for_each_head(batch, x, [&](int64_t sequence, int64_t head, Scratch<T> scratch) {
        const int64_t start = batch.offsets[sequence], length = batch.offsets[sequence + 1] - start;
        const T* query = x.q.at(sequence, head * width).data;
        const HeadRows<T> k = x.k.at(start, head * width), v = x.v.at(start, head * width);
        T* result = x.out + (sequence * heads + head) * width;
        T* scores = scratch.take(length);
        for (int64_t d = 0; d < width; ++d) result[d] = T(0);
        x.lse[sequence * heads + head] = T(0);
        if (length == 0) return;
        T top = -std::numeric_limits<T>::infinity(), sum = T(0);
        for (int64_t j = 0; j < length; ++j) {
            scores[j] = factor * dot(query, k.at(j, 0).data, width);
            top = scores[j] > top ? scores[j] : top;
        }
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < length; ++j) {
            scores[j] = exp2_negative(scores[j] - top);
            sum += scores[j];
        }
        RowMask mask(batch.dropout.of_head(head), start + length - 1);
        for (int64_t j = 0; j < length; ++j)
            if (!mask.dropped(start + j)) add_scaled(scores[j], v.at(j, 0).data, result, width);
        for (int64_t d = 0; d < width; ++d) result[d] *= keep_scale / sum;
        x.lse[sequence * heads + head] = top * static_cast<T>(kLn2) + std::log(sum);
    });
}

template <typename T>
void last_query_attention_backward(const AttentionBatch& batch, const AttentionTensors<T>& x) {
    const int64_t width = batch.width, heads = batch.heads, stride = heads * width;
    const T scale = static_cast<T>(batch.scale), keep_scale = static_cast<T>(batch.dropout.scale);
    for_each_head(batch, x, [&](int64_t sequence, int64_t head, Scratch<T> scratch) {
        const int64_t start = batch.offsets[sequence], length = batch.offsets[sequence + 1] - start;
        const int64_t own = (sequence * heads + head) * width;
        const T* query = x.q.at(sequence, head * width).data;
        const T* grad = x.grad + own;
        const HeadRows<T> k = x.k.at(start, head * width), v = x.v.at(start, head * width);
        const T log_sum = x.saved_lse[sequence * heads + head];
        T* weights = scratch.take(length);  // a negative one is dropped
        T* products = scratch.take(length);
        T delta = T(0);
        RowMask mask(batch.dropout.of_head(head), start + length - 1);
        for (int64_t j = 0; j < length; ++j) {
            const bool dropped = mask.dropped(start + j);
            const T score = scale * dot(query, k.at(j, 0).data, width);
            const T weight = exp2_negative((score - log_sum) * static_cast<T>(kLog2E));
            weights[j] = dropped ? -weight : weight;
            products[j] = dropped ? T(0) : dot(grad, v.at(j, 0).data, width) * keep_scale;
            delta += weight * products[j];
        }
        T* grad_q = x.grad_q + own;
        for (int64_t d = 0; d < width; ++d) grad_q[d] = T(0);
        for (int64_t j = 0; j < length; ++j) {
            const T weight = weights[j] < T(0) ? -weights[j] : weights[j];
            const T slope = weight * (products[j] - delta) * scale;
            const T kept = weights[j] < T(0) ? T(0) : weight * keep_scale;
            add_scaled(slope, k.at(j, 0).data, grad_q, width);
            T* grad_k = x.grad_k + (start + j) * stride + head * width;
            T* grad_v = x.grad_v + (start + j) * stride + head * width;
#pragma omp simd
            for (int64_t d = 0; d < width; ++d) {
                grad_k[d] = slope * query[d];
                grad_v[d] = kept * grad[d];
            }
        }
    });
}

FASTSEQ_INSTANTIATE(causal_attention)
FASTSEQ_INSTANTIATE(causal_attention_backward)
FASTSEQ_INSTANTIATE(last_query_attention)
FASTSEQ_INSTANTIATE(last_query_attention_backward)

}  // namespace fastseq::FASTSEQ_ISA
