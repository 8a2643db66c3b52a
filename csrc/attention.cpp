// Causal attention over jagged sequences, one (sequence, head) at a time.
//
// A block of 16 queries lives in the lanes of a vector, so the scores of a block are a tile [keys, 16] up to the
// diagonal: softmax statistics need no horizontal sums, one philox_rows() call gives the mask of four keys, and all
// five products are the same small gemm. The backward pass computes the tile again from the saved log-sum-exp.
// Scores are kept in units of log 2, so that exponentials are powers of two.
#include "attention.h"

#include <omp.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "exp2.h"
#include "philox_lanes.h"
#include "small_gemm.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;

static_assert(kQueries == kPhiloxRows, "the mask of a block is one philox_rows() call for every four keys");

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
void pack_rows(const T* from, int64_t stride, int64_t rows, int64_t rows_padded, int64_t width, int64_t padded,
               T factor, T* to) {
    for (int64_t i = 0; i < rows; ++i, to += padded) {
        for (int64_t d = 0; d < width; ++d) to[d] = from[i * stride + d] * factor;
        for (int64_t d = width; d < padded; ++d) to[d] = T(0);
    }
    std::memset(to, 0, static_cast<size_t>((rows_padded - rows) * padded) * sizeof(T));
}

// to [width, 16] = the transpose of from [rows, width] * factor, zero in the lanes that have no row.
template <typename T>
void pack_lanes(const T* from, int64_t stride, int64_t rows, int64_t width, T factor, T* to) {
    if (rows < kQueries) std::memset(to, 0, static_cast<size_t>(width * kQueries) * sizeof(T));
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t d = 0; d < width; ++d) to[d * kQueries + r] = from[r * stride + d] * factor;
}

// to [rows, width] = from [rows, padded], row r times factor[r].
template <typename T>
void unpack_rows(const T* from, int64_t padded, int64_t rows, int64_t width, const T* factor, int64_t factor_step,
                 T* to, int64_t stride) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t d = 0; d < width; ++d) to[r * stride + d] = from[r * padded + d] * factor[r * factor_step];
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

// scores <- 2^(score - largest), zero where masked or dropped; sum: before dropping.
template <typename T, bool kDropout>
void exponentiate(const AttentionBatch& batch, T* scores, int64_t keys, int64_t first, uint32_t row, uint32_t site,
                  const T* largest, T* sum) {
    alignas(64) uint32_t words[4][kPhiloxRows];
    for (int r = 0; r < kQueries; ++r) sum[r] = T(0);
    for (int64_t j = 0; j < keys; j += 4) {
        if (kDropout) philox_rows(batch.rng, static_cast<uint32_t>(j / 4), row, site, words);
        const T distance = static_cast<T>(j - first);
        T* tile = scores + j * kQueries;
#pragma omp simd
        for (int r = 0; r < kQueries; ++r) {
            T part = T(0);
            for (int g = 0; g < 4; ++g) {
                const T power = exp2_negative(tile[g * kQueries + r] - largest[r]);
                const T weight = distance + static_cast<T>(g) <= static_cast<T>(r) ? power : T(0);
                part += weight;
                tile[g * kQueries + r] = kDropout && words[g][r] < batch.threshold ? T(0) : weight;
            }
            sum[r] += part;
        }
    }
}

// From the tiles of scores and of d(out) vᵀ / (1 - p): scores <- the dropped probabilities, products <- d(scores).
template <typename T, bool kDropout>
void differentiate(const AttentionBatch& batch, T* scores, T* products, int64_t keys, int64_t first, uint32_t row,
                   uint32_t site, const T* lse, const T* delta) {
    alignas(64) uint32_t words[4][kPhiloxRows];
    for (int64_t j = 0; j < keys; j += 4) {
        if (kDropout) philox_rows(batch.rng, static_cast<uint32_t>(j / 4), row, site, words);
        const T distance = static_cast<T>(j - first);
        T* tile = scores + j * kQueries;
        T* product = products + j * kQueries;
#pragma omp simd
        for (int r = 0; r < kQueries; ++r)
            for (int g = 0; g < 4; ++g) {
                const int64_t cell = g * kQueries + r;
                const T power = exp2_negative(tile[cell] - lse[r]);
                const T weight = distance + static_cast<T>(g) <= static_cast<T>(r) ? power : T(0);
                const bool dropped = kDropout && words[g][r] < batch.threshold;
                tile[cell] = dropped ? T(0) : weight;
                product[cell] = weight * ((dropped ? T(0) : product[cell]) - delta[r]);
            }
    }
}

template <typename T, bool kDropout>
void forward_head(const AttentionBatch& batch, int64_t sequence, int64_t head, HeadRows<T> q, HeadRows<T> k,
                  HeadRows<T> v, T* out, T* lse, Scratch<T> scratch) {
    const int64_t start = batch.offsets[sequence], length = batch.offsets[sequence + 1] - start;
    const int64_t width = batch.width, padded = padded_width(width), heads = batch.heads;
    const int64_t length_padded = (length + kGemmRows - 1) / kGemmRows * kGemmRows;
    const uint32_t site = batch.site | static_cast<uint32_t>(head) << 16;
    const T keep_scale = static_cast<T>(1.0 / (1.0 - batch.p));
    T* keys = scratch.take(length_padded * padded);
    T* values = scratch.take(length_padded * padded);
    T* scores = scratch.take(padded_length(length) * kQueries);
    T* queries = scratch.take(kQueries * padded);
    T* result = scratch.take(kQueries * padded);
    pack_rows(k.data + start * k.stride + head * width, k.stride, length, length_padded, width, padded, T(1), keys);
    pack_rows(v.data + start * v.stride + head * width, v.stride, length, length_padded, width, padded, T(1), values);
    alignas(64) T top[kQueries], sum[kQueries];
    for (int64_t first = 0; first < length; first += kQueries) {
        const int64_t rows = length - first < kQueries ? length - first : kQueries;
        const int64_t seen = first + kQueries < length_padded ? first + kQueries : length_padded;
        const int64_t row = start + first;
        pack_lanes(q.data + row * q.stride + head * width, q.stride, rows, width,
                   static_cast<T>(batch.scale * kLog2E), queries);
        gemm<T>(seen, kQueries, width, {keys, padded, 1}, queries, kQueries, scores, kQueries, false);
        largest(scores, seen, first, top);
        exponentiate<T, kDropout>(batch, scores, seen, first, static_cast<uint32_t>(row), site, top, sum);
        gemm<T>(kQueries, padded, seen, {scores, 1, kQueries}, values, padded, result, padded, false);
        for (int64_t r = 0; r < rows; ++r) {
            lse[(row + r) * heads + head] = top[r] * static_cast<T>(kLn2) + std::log(sum[r]);
            sum[r] = keep_scale / sum[r];
        }
        unpack_rows(result, padded, rows, width, sum, 1, out + (row * heads + head) * width, heads * width);
    }
}

template <typename T, bool kDropout>
void backward_head(const AttentionBatch& batch, int64_t sequence, int64_t head, const T* grad, HeadRows<T> q,
                   HeadRows<T> k, HeadRows<T> v, const T* out, const T* lse, T* grad_q, T* grad_k, T* grad_v,
                   Scratch<T> scratch) {
    const int64_t start = batch.offsets[sequence], length = batch.offsets[sequence + 1] - start;
    const int64_t width = batch.width, padded = padded_width(width), heads = batch.heads, stride = heads * width;
    const int64_t length_padded = (length + kGemmRows - 1) / kGemmRows * kGemmRows;
    const uint32_t site = batch.site | static_cast<uint32_t>(head) << 16;
    const T scale = static_cast<T>(batch.scale), keep_scale = static_cast<T>(1.0 / (1.0 - batch.p)), one = T(1);
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
    pack_rows(k.data + start * k.stride + head * width, k.stride, length, length_padded, width, padded, one, keys);
    pack_rows(v.data + start * v.stride + head * width, v.stride, length, length_padded, width, padded, one, values);
    std::memset(key_sums, 0, static_cast<size_t>(length_padded * padded) * sizeof(T));
    std::memset(value_sums, 0, static_cast<size_t>(length_padded * padded) * sizeof(T));
    alignas(64) T log_sum[kQueries], delta[kQueries];
    for (int64_t first = 0; first < length; first += kQueries) {
        const int64_t rows = length - first < kQueries ? length - first : kQueries;
        const int64_t seen = first + kQueries < length_padded ? first + kQueries : length_padded;
        const int64_t row = start + first;
        const T* block_q = q.data + row * q.stride + head * width;
        const T* block_grad = grad + row * stride + head * width;
        const T* block_out = out + row * stride + head * width;
        for (int64_t r = 0; r < kQueries; ++r) {
            log_sum[r] = r < rows ? lse[(row + r) * heads + head] * static_cast<T>(kLog2E) : T(0);
            T sum = T(0);
            if (r < rows)
#pragma omp simd reduction(+ : sum)
                for (int64_t d = 0; d < width; ++d) sum += block_grad[r * stride + d] * block_out[r * stride + d];
            delta[r] = sum;
        }
        pack_lanes(block_q, q.stride, rows, width, static_cast<T>(batch.scale * kLog2E), query_lanes);
        pack_rows(block_q, q.stride, rows, kQueries, width, padded, scale, query_rows);
        pack_lanes(block_grad, stride, rows, width, keep_scale, grad_lanes);
        pack_rows(block_grad, stride, rows, kQueries, width, padded, keep_scale, grad_rows);
        gemm<T>(seen, kQueries, width, {keys, padded, 1}, query_lanes, kQueries, scores, kQueries, false);
        gemm<T>(seen, kQueries, width, {values, padded, 1}, grad_lanes, kQueries, products, kQueries, false);
        differentiate<T, kDropout>(batch, scores, products, seen, first, static_cast<uint32_t>(row), site, log_sum,
                                   delta);
        gemm<T>(seen, padded, kQueries, {scores, kQueries, 1}, grad_rows, padded, value_sums, padded, true);
        gemm<T>(seen, padded, kQueries, {products, kQueries, 1}, query_rows, padded, key_sums, padded, true);
        gemm<T>(kQueries, padded, seen, {products, 1, kQueries}, keys, padded, query_sums, padded, false);
        unpack_rows(query_sums, padded, rows, width, &scale, 0, grad_q + row * stride + head * width, stride);
    }
    const int64_t at = start * stride + head * width;
    unpack_rows(key_sums, padded, length, width, &one, 0, grad_k + at, stride);
    unpack_rows(value_sums, padded, length, width, &one, 0, grad_v + at, stride);
}

template <typename T>
void causal_attention(const AttentionBatch& batch, HeadRows<T> q, HeadRows<T> k, HeadRows<T> v, T* out, T* lse,
                      T* scratch, int64_t scratch_size) {
    const auto head_kernel = batch.threshold != 0 ? forward_head<T, true> : forward_head<T, false>;
#pragma omp parallel for num_threads(batch.threads) schedule(dynamic)
    for (int64_t task = 0; task < batch.sequences * batch.heads; ++task)
        head_kernel(batch, batch.order[task / batch.heads], task % batch.heads, q, k, v, out, lse,
                    {scratch + omp_get_thread_num() * scratch_size});
}

template <typename T>
void causal_attention_backward(const AttentionBatch& batch, const T* grad, HeadRows<T> q, HeadRows<T> k,
                               HeadRows<T> v, const T* out, const T* lse, T* grad_q, T* grad_k, T* grad_v,
                               T* scratch, int64_t scratch_size) {
    const auto head_kernel = batch.threshold != 0 ? backward_head<T, true> : backward_head<T, false>;
#pragma omp parallel for num_threads(batch.threads) schedule(dynamic)
    for (int64_t task = 0; task < batch.sequences * batch.heads; ++task)
        head_kernel(batch, batch.order[task / batch.heads], task % batch.heads, grad, q, k, v, out, lse, grad_q,
                    grad_k, grad_v, {scratch + omp_get_thread_num() * scratch_size});
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

// words[j] for keys [64 * group, 64 * group + 64) of the last query of a sequence that ends before `stop`.
void last_words(const AttentionBatch& batch, int64_t group, int64_t stop, int64_t head, uint32_t* words) {
    if (batch.threshold == 0) return;
    philox_group(batch.rng, static_cast<uint32_t>(group), static_cast<uint32_t>(stop - 1),
                 batch.site | static_cast<uint32_t>(head) << 16, words);
}

template <typename T>
void last_query_attention(const AttentionBatch& batch, HeadRows<T> q, HeadRows<T> k, HeadRows<T> v, T* out, T* lse,
                          T* scratch, int64_t scratch_size) {
    const int64_t width = batch.width, heads = batch.heads;
    const T factor = static_cast<T>(batch.scale * kLog2E), keep_scale = static_cast<T>(1.0 / (1.0 - batch.p));
#pragma omp parallel for num_threads(batch.threads) schedule(dynamic)
    for (int64_t task = 0; task < batch.sequences * heads; ++task) {
        const int64_t sequence = batch.order[task / heads], head = task % heads;
        const int64_t start = batch.offsets[sequence], length = batch.offsets[sequence + 1] - start;
        const T* query = q.data + sequence * q.stride + head * width;
        const T* keys = k.data + start * k.stride + head * width;
        const T* values = v.data + start * v.stride + head * width;
        T* result = out + (sequence * heads + head) * width;
        T* scores = scratch + omp_get_thread_num() * scratch_size;
        alignas(64) uint32_t words[kWords];
        for (int64_t d = 0; d < width; ++d) result[d] = T(0);
        lse[sequence * heads + head] = T(0);
        if (length == 0) continue;
        T top = -std::numeric_limits<T>::infinity(), sum = T(0);
        for (int64_t j = 0; j < length; ++j) {
            scores[j] = factor * dot(query, keys + j * k.stride, width);
            top = scores[j] > top ? scores[j] : top;
        }
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < length; ++j) {
            scores[j] = exp2_negative(scores[j] - top);
            sum += scores[j];
        }
        for (int64_t j = 0; j < length; ++j) {
            if (j % kWords == 0) last_words(batch, j / kWords, start + length, head, words);
            if (batch.threshold != 0 && words[j % kWords] < batch.threshold) continue;
            add_scaled(scores[j], values + j * v.stride, result, width);
        }
        for (int64_t d = 0; d < width; ++d) result[d] *= keep_scale / sum;
        lse[sequence * heads + head] = top * static_cast<T>(kLn2) + std::log(sum);
    }
}

template <typename T>
void last_query_attention_backward(const AttentionBatch& batch, const T* grad, HeadRows<T> q, HeadRows<T> k,
                                   HeadRows<T> v, const T* out, const T* lse, T* grad_q, T* grad_k, T* grad_v) {
    const int64_t width = batch.width, heads = batch.heads, stride = heads * width;
    const T scale = static_cast<T>(batch.scale), keep_scale = static_cast<T>(1.0 / (1.0 - batch.p));
#pragma omp parallel for num_threads(batch.threads) schedule(dynamic)
    for (int64_t task = 0; task < batch.sequences * heads; ++task) {
        const int64_t sequence = batch.order[task / heads], head = task % heads;
        const int64_t start = batch.offsets[sequence], length = batch.offsets[sequence + 1] - start;
        const int64_t own = (sequence * heads + head) * width;
        const T* query = q.data + sequence * q.stride + head * width;
        const T* keys = k.data + start * k.stride + head * width;
        const T* values = v.data + start * v.stride + head * width;
        const T delta = dot(grad + own, out + own, width);
        const T log_sum = lse[sequence * heads + head];
        alignas(64) uint32_t words[kWords];
        for (int64_t d = 0; d < width; ++d) grad_q[own + d] = T(0);
        for (int64_t j = 0; j < length; ++j) {
            if (j % kWords == 0) last_words(batch, j / kWords, start + length, head, words);
            const bool dropped = batch.threshold != 0 && words[j % kWords] < batch.threshold;
            const T* key = keys + j * k.stride;
            const T score = scale * dot(query, key, width);
            const T weight = exp2_negative((score - log_sum) * static_cast<T>(kLog2E));
            const T kept = dropped ? T(0) : keep_scale;
            const T product = dropped ? T(0) : dot(grad + own, values + j * v.stride, width) * keep_scale;
            const T slope = weight * (product - delta) * scale;
            add_scaled(slope, key, grad_q + own, width);
            const int64_t at = (start + j) * stride + head * width;
#pragma omp simd
            for (int64_t d = 0; d < width; ++d) {
                grad_k[at + d] = slope * query[d];
                grad_v[at + d] = weight * kept * grad[own + d];
            }
        }
    }
}

}  // namespace

#define FASTSEQ_ATTENTION(T, suffix)                                                                                \
    void causal_attention_##suffix(const AttentionBatch& batch, HeadRows<T> q, HeadRows<T> k, HeadRows<T> v, T* out, \
                                   T* lse, T* scratch, int64_t scratch_size) {                                      \
        causal_attention<T>(batch, q, k, v, out, lse, scratch, scratch_size);                                       \
    }                                                                                                               \
    void causal_attention_backward_##suffix(const AttentionBatch& batch, const T* grad, HeadRows<T> q,              \
                                            HeadRows<T> k, HeadRows<T> v, const T* out, const T* lse, T* grad_q,    \
                                            T* grad_k, T* grad_v, T* scratch, int64_t scratch_size) {               \
        causal_attention_backward<T>(batch, grad, q, k, v, out, lse, grad_q, grad_k, grad_v, scratch, scratch_size); \
    }                                                                                                               \
    void last_query_attention_##suffix(const AttentionBatch& batch, HeadRows<T> q, HeadRows<T> k, HeadRows<T> v,    \
                                       T* out, T* lse, T* scratch, int64_t scratch_size) {                          \
        last_query_attention<T>(batch, q, k, v, out, lse, scratch, scratch_size);                                   \
    }                                                                                                               \
    void last_query_attention_backward_##suffix(const AttentionBatch& batch, const T* grad, HeadRows<T> q,          \
                                                HeadRows<T> k, HeadRows<T> v, const T* out, const T* lse,           \
                                                T* grad_q, T* grad_k, T* grad_v) {                                  \
        last_query_attention_backward<T>(batch, grad, q, k, v, out, lse, grad_q, grad_k, grad_v);                   \
    }
FASTSEQ_ATTENTION(float, f32)
FASTSEQ_ATTENTION(double, f64)
#undef FASTSEQ_ATTENTION

}  // namespace fastseq::FASTSEQ_ISA
