// Caser's convolutions over shared windows, forward.
//
// The convolution of height h at row r is the same in every history that holds rows r ... r + h - 1, so it is computed
// once for all targets of a sequence; a history's pooled value is a maximum over a range of rows. A filter that runs
// past the end of a short history is the sum of its first taps, which the running sum over taps passes through, plus a
// constant of the padding row. Only rows that some target needs are computed, so one target of a full history costs
// what the direct form costs.
//
// The filters of all heights form one list of lanes (height - 1) n_h + filter, cut into blocks of one vector register;
// kRows rows at a time are multiplied with a block. Sums over d are taken per tap and then added, which keeps the
// rounding error of long filters small.
#include "caser_windows.h"

#include <omp.h>

#include <cmath>
#include <type_traits>

#include "simd.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

constexpr int kRows = 8;  // independent sums that hide the latency of a multiply-add

template <typename T>
struct Simd {
    using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    typedef T Value __attribute__((vector_size(kVectorBytes)));
    typedef Index Mask __attribute__((vector_size(kVectorBytes)));
    static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(T));
};

// One register's worth of filters.
template <typename T>
struct Block {
    using S = Simd<T>;
    int first, count;  // lanes of the list
    int low, high;     // heights of the first and the last of them
    T* weight;         // [high, d, lanes], zero beyond a lane's height
    T* rest;           // [high + 1, lanes]: bias + what the taps from this one on make of the padding row
    typename S::Mask height;
};

// The most positive values seen so far, lane by lane, and where.
template <typename T>
struct Best {
    typename Simd<T>::Value value;
    typename Simd<T>::Mask position;
};

// A row at which a block is convolved. Its first `taps` taps are summed; after m of them, low <= m <= high, the sum
// serves the short history that ends m rows on, whose maximum is bests[slot + m].
struct Row {
    int64_t row;
    int taps, low, high, position, room;  // room: rows from here to the end of the padded window
    int64_t slot;
};

template <typename T>
void pack(const CaserInputs<T>& in, Block<T>& block) {
    using S = Simd<T>;
    for (int64_t i = 0; i < static_cast<int64_t>(block.high) * in.d * S::lanes; ++i) block.weight[i] = T(0);
    for (int64_t i = 0; i < static_cast<int64_t>(block.high + 1) * S::lanes; ++i) block.rest[i] = T(0);
    for (int lane = 0; lane < S::lanes; ++lane) {
        block.height[lane] = INT32_MAX;  // an unused lane fits in no history
        if (lane >= block.count) continue;
        const int height = (block.first + lane) / in.n_h + 1, filter = (block.first + lane) % in.n_h;
        block.height[lane] = height;
        T rest = in.bias_h[block.first + lane];
        for (int tap = block.high; tap >= height; --tap) block.rest[tap * S::lanes + lane] = rest;
        for (int tap = height - 1; tap >= 0; --tap) {
            const int64_t index = static_cast<int64_t>(height) * (height - 1) / 2 + tap;
            const T* weight = in.weight_h + (index * in.n_h + filter) * in.d;
            T* packed = block.weight + static_cast<int64_t>(tap) * in.d * S::lanes + lane;
            T product = T(0);
            for (int k = 0; k < in.d; ++k) packed[k * S::lanes] = weight[k];
#pragma omp simd reduction(+ : product)
            for (int k = 0; k < in.d; ++k) product += weight[k] * in.padding_row[k];
            rest += product;
            block.rest[tap * S::lanes + lane] = rest;
        }
    }
}

// The rows of one chunk that a block needs, sequence after sequence: returns how many. Row r of sequence s is
// rows[where[s] + r]; the short history that ends before it has bests[slots[s] + r], which is cleared.
template <typename T>
int64_t list_rows(const CaserPlan& plan, const CaserInputs<T>& in, const Block<T>& block, int64_t chunk, Row* rows,
                  int64_t* where, int64_t* slots, Best<T>* bests) {
    using S = Simd<T>;
    int64_t count = 0, n_slots = 0;
    const int64_t first_sequence = plan.chunks[chunk];
    for (int64_t s = first_sequence; s < plan.chunks[chunk + 1]; ++s) {
        const int64_t start = plan.offsets[s], first = plan.first_stop[s], last = plan.last_stop[s];
        const int64_t begin = first - start > in.max_len ? first - in.max_len : start;
        const int64_t last_short = last < start + in.max_len ? last : start + in.max_len - 1;
        const bool any_short = first <= last_short;
        const int64_t full_end = last - block.low + 1, room_end = start + in.max_len - block.low + 1;
        const int64_t short_end = !any_short ? begin : last_short < room_end ? last_short : room_end;
        where[s - first_sequence] = count - begin;
        slots[s - first_sequence] = n_slots - first;
        for (int64_t stop = first; stop <= last_short; ++stop)
            bests[n_slots++] = {typename S::Value{} - T(INFINITY), typename S::Mask{} + INT32_MAX};
        for (int64_t row = begin; row < full_end || row < short_end; ++row) {
            Row& r = rows[count++];
            r.row = row;
            r.position = static_cast<int>(row - start);
            r.slot = slots[s - first_sequence] + row;
            r.low = 1, r.high = 0, r.room = 0;
            if (row < short_end) {
                r.low = first - row > 1 ? static_cast<int>(first - row) : 1;
                r.high = static_cast<int>(last_short - row < block.high - 1 ? last_short - row : block.high - 1);
                r.room = in.max_len - r.position;
            }
            r.taps = static_cast<int>(last - row < block.high ? last - row : block.high);
            if (row >= full_end) r.taps = r.high;
        }
    }
    return count;
}

// Sums of kRows rows; bests are updated on the way where Short.
template <typename T, bool Short>
void convolve(const CaserInputs<T>& in, const Block<T>& block, const Row* const* rows, int taps,
              typename Simd<T>::Value* sums, Best<T>* bests) {
    using S = Simd<T>;
    const int d = in.d;
    const T* x[kRows];
    for (int i = 0; i < kRows; ++i) {
        x[i] = in.x + rows[i]->row * d;
        sums[i] = typename S::Value{};
    }
    const T* weight = block.weight;
    for (int tap = 0; tap < taps; ++tap, weight += static_cast<int64_t>(d) * S::lanes) {
        typename S::Value products[kRows] = {};
        for (int k = 0; k < d; ++k) {
            const auto w = *reinterpret_cast<const typename S::Value*>(weight + static_cast<int64_t>(k) * S::lanes);
#pragma GCC unroll 8
            for (int i = 0; i < kRows; ++i) products[i] += w * x[i][k];
        }
        for (int i = 0; i < kRows; ++i) {
            sums[i] += products[i];
            if (tap + 1 < rows[i]->taps) x[i] += d;  // beyond its taps a row meets zero weights only
        }
        if (!Short) continue;
        const int done = tap + 1;
        const auto rest = *reinterpret_cast<const typename S::Value*>(block.rest + done * S::lanes);
        for (int i = 0; i < kRows; ++i) {
            const Row& r = *rows[i];
            if (done < r.low || done > r.high) continue;
            Best<T>& best = bests[r.slot + done];
            const auto value = sums[i] + rest;
            const typename S::Index position = r.position, room = r.room, used = done;
            const auto fits = (block.height > used) & (block.height <= room);
            const auto first = (value == best.value) & (best.position > position);
            const auto take = fits & ((value > best.value) | first | (value != value));
            best.value = take ? value : best.value;
            best.position = take ? typename S::Mask{} + position : best.position;
        }
    }
}

// Pools one history: rows first ... of values are the convolutions at its positions 0 ...
template <typename T>
Best<T> pool(const CaserInputs<T>& in, const Block<T>& block, const typename Simd<T>::Value* values, int length,
             const Best<T>* partial) {
    using S = Simd<T>;
    using Index = typename S::Index;
    Best<T> best{typename S::Value{} - T(INFINITY), typename S::Mask{}};
    const typename S::Mask zero{};
    const auto take = [&](typename S::Value value, typename S::Mask fits, typename S::Mask position) {
        const auto better = fits & ((value > best.value) | (value != value));
        best.value = better ? value : best.value;
        best.position = better ? position : best.position;
    };
    for (int p = 0; p + block.low <= length; ++p) take(values[p], block.height <= Index(length - p), zero + Index(p));
    if (length == in.max_len) return best;
    take(partial->value, partial->position < Index(in.max_len), partial->position);
    const auto padded = *reinterpret_cast<const typename S::Value*>(block.rest);
    take(padded, block.height <= Index(in.max_len - length), zero + Index(length));
    return best;
}

template <typename T>
void horizontal(const CaserPlan& plan, const CaserInputs<T>& in, T* out, int32_t* position, int threads) {
    using S = Simd<T>;
    const int n_lanes = in.max_len * in.n_h, n_blocks = (n_lanes + S::lanes - 1) / S::lanes;
    const int64_t width = static_cast<int64_t>(in.n_v) * in.d + n_lanes;
    const Buffer<Block<T>> block_memory(n_blocks);
    Block<T>* blocks = block_memory.get();
    int64_t size = 0;
    for (int b = 0; b < n_blocks; ++b) {
        Block<T>& block = blocks[b];
        block.first = b * S::lanes;
        block.count = n_lanes - block.first < S::lanes ? n_lanes - block.first : S::lanes;
        block.low = block.first / in.n_h + 1;
        block.high = (block.first + block.count - 1) / in.n_h + 1;
        size += (static_cast<int64_t>(block.high) * in.d + block.high + 1) * S::lanes;
    }
    const Buffer<T> packed(size);
    T* next = packed.get();
    for (int b = 0; b < n_blocks; ++b) {
        blocks[b].weight = next;
        next += static_cast<int64_t>(blocks[b].high) * in.d * S::lanes;
        blocks[b].rest = next;
        next += (blocks[b].high + 1) * S::lanes;
    }
    int64_t most_sequences = 0;
    for (int64_t c = 0; c < plan.n_chunks; ++c) {
        const int64_t here = plan.chunks[c + 1] - plan.chunks[c];
        if (here > most_sequences) most_sequences = here;
    }
    const int64_t most_bests = plan.max_rows + most_sequences;
    const Buffer<Row> all_rows(plan.max_rows * threads);
    const Buffer<typename S::Value> all_values(plan.max_rows * threads);
    const Buffer<Best<T>> all_bests(most_bests * threads);
    const Buffer<int64_t> all_offsets(2 * most_sequences * threads);
#pragma omp parallel num_threads(threads)
    {
        const int64_t thread = omp_get_thread_num();
        Row* rows = all_rows.get() + thread * plan.max_rows;
        auto* values = all_values.get() + thread * plan.max_rows;
        Best<T>* bests = all_bests.get() + thread * most_bests;
        int64_t* where = all_offsets.get() + thread * 2 * most_sequences;
        int64_t* slots = where + most_sequences;
#pragma omp for schedule(dynamic)
        for (int b = 0; b < n_blocks; ++b) pack(in, blocks[b]);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < n_blocks * plan.n_chunks; ++item) {
            const Block<T>& block = blocks[n_blocks - 1 - item / plan.n_chunks];  // the tallest first
            const int64_t chunk = item % plan.n_chunks;
            const int64_t first_sequence = plan.chunks[chunk];
            const int64_t count = list_rows(plan, in, block, chunk, rows, where, slots, bests);
            for (int64_t i = 0; i < count; i += kRows) {
                const Row* tile[kRows];
                typename S::Value sums[kRows];
                int taps = 0;
                bool any_short = false;
                for (int k = 0; k < kRows; ++k) {
                    tile[k] = rows + (i + k < count ? i + k : count - 1);
                    taps = tile[k]->taps > taps ? tile[k]->taps : taps;
                    any_short |= tile[k]->high >= tile[k]->low;
                }
                (any_short ? convolve<T, true> : convolve<T, false>)(in, block, tile, taps, sums, bests);
                const auto bias = *reinterpret_cast<const typename S::Value*>(block.rest + block.high * S::lanes);
                for (int k = 0; k < kRows && i + k < count; ++k) values[i + k] = sums[k] + bias;
            }
            for (int64_t s = first_sequence; s < plan.chunks[chunk + 1]; ++s) {
                for (int64_t t = plan.begin[s]; t < plan.begin[s + 1]; ++t) {
                    const int64_t target = plan.order[t], stop = plan.stops[target];
                    const int64_t all = stop - plan.offsets[s];
                    const int length = static_cast<int>(all < in.max_len ? all : in.max_len);
                    const Best<T>* partial = length < in.max_len ? bests + slots[s - first_sequence] + stop : nullptr;
                    const Best<T> best =
                        pool(in, block, values + where[s - first_sequence] + stop - length, length, partial);
                    T* to = out + target * width + static_cast<int64_t>(in.n_v) * in.d + block.first;
                    int32_t* at = position + target * n_lanes + block.first;
                    for (int lane = 0; lane < block.count; ++lane) {
                        to[lane] = best.value[lane] < T(0) ? T(0) : best.value[lane];
                        at[lane] = best.value[lane] > T(0) ? static_cast<int32_t>(best.position[lane]) : -1;
                    }
                }
            }
        }
    }
}

template <typename T>
void vertical(const CaserPlan& plan, const CaserInputs<T>& in, T* out, int threads) {
    const int64_t width = static_cast<int64_t>(in.n_v) * in.d + static_cast<int64_t>(in.max_len) * in.n_h;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t s = 0; s < plan.n_sequences; ++s) {
        for (int64_t t = plan.begin[s]; t < plan.begin[s + 1]; ++t) {
            const int64_t target = plan.order[t], all = plan.stops[target] - plan.offsets[s];
            const int length = static_cast<int>(all < in.max_len ? all : in.max_len);
            const T* x = in.x + (plan.stops[target] - length) * in.d;
            for (int v = 0; v < in.n_v; ++v) {
                const T* weight = in.weight_v + static_cast<int64_t>(v) * in.max_len;
                T* to = out + target * width + static_cast<int64_t>(v) * in.d;
                T padded = T(0);
                for (int l = length; l < in.max_len; ++l) padded += weight[l];
                for (int k = 0; k < in.d; ++k) to[k] = in.bias_v[v] + padded * in.padding_row[k];
                for (int l = 0; l < length; ++l) {
                    const T w = weight[l];
                    const T* row = x + static_cast<int64_t>(l) * in.d;
#pragma omp simd
                    for (int k = 0; k < in.d; ++k) to[k] += w * row[k];
                }
            }
        }
    }
}

}  // namespace

template <typename T>
void caser_windows(const CaserPlan& plan, const CaserInputs<T>& in, T* out, int32_t* position, int threads) {
    if (in.n_h > 0) horizontal(plan, in, out, position, threads);
    if (in.n_v > 0) vertical(plan, in, out, threads);
}

FASTSEQ_INSTANTIATE(caser_windows)

}  // namespace fastseq::FASTSEQ_ISA
