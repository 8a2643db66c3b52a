// The k best by a heap whose root is the worst of those kept. A thread offers items in the order of their ids, and they
// must beat the root strictly to enter, so among equal scores the smaller id stays, at the boundary too. Scores live in
// a register tile of a few items and many users, and are compared with the roots, the users' bars, as they are made;
// few users' are dot products, since reading the items is what binds them. Every thread has heaps of its own.
//
// With codes, 8-bit integers that say where an item lies to half a step, an item is skipped if a bound on its score is
// below the bar, and else scored as it is without codes. So they change no bit of the result.
#include "topk.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "operand.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace fastseq::FASTSEQ_ISA {
namespace {

// Users whose scores are dot products; items that stay in cache beside a panel of users, and most of a task.
constexpr int64_t kFewUsers = 8, kBlockItems = 8 * kSumRows, kMostItems = 64 * kBlockItems;
constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

template <typename T>
struct Heap {
    T* score;
    int64_t* id;
    int64_t size;

    // Whether entry a ranks below entry b.
    bool worse(int64_t a, int64_t b) const {
        return score[a] < score[b] || (score[a] == score[b] && id[a] > id[b]);
    }
    void swap(int64_t a, int64_t b) {
        std::swap(score[a], score[b]);
        std::swap(id[a], id[b]);
    }
    // Moves entry i of the first `count` down until no child is worse.
    void sink(int64_t i, int64_t count) {
        for (;;) {
            int64_t child = 2 * i + 1;
            if (child >= count) return;
            if (child + 1 < count && worse(child + 1, child)) ++child;
            if (!worse(child, i)) return;
            swap(i, child);
            i = child;
        }
    }
    void replace_worst(T new_score, int64_t new_id) {
        score[0] = new_score;
        id[0] = new_id;
        sink(0, size);
    }
    // Best first.
    void sort() {
        for (int64_t last = size - 1; last > 0; --last) {
            swap(0, last);
            sink(0, last);
        }
    }
};

// What a thread has found so far.
template <typename T>
struct Found {
    const Topk<T>& a;
    const int64_t* seen;  // from seen_offsets[0] on, ascending for each user
    T *scores, *bars;     // heaps [users, size], and their roots
    int64_t *ids, size, nan = kNone;

    // Takes the score of the item at `place` of the part, which is above the user's bar or NaN.
    void offer(int64_t user, int64_t place, T score) {
        const int64_t item = a.first_item + place;
        const int64_t *begin = seen + (a.seen_offsets[user] - a.seen_offsets[0]),
                      *end = seen + (a.seen_offsets[user + 1] - a.seen_offsets[0]);
        if (std::binary_search(begin, end, item)) return;
        if (score != score) {
            nan = std::min(nan, user * a.count + place);
            return;
        }
        Heap<T> heap{scores + user * size, ids + user * size, size};
        heap.replace_worst(score, item);
        bars[user] = heap.score[0];
    }
};

// Whether any of the scores is above its bar, or NaN.
template <typename T>
FASTSEQ_INLINE bool any_above(const T* scores, const T* bars, int64_t count) {
    int above = 0;
#pragma omp simd reduction(| : above)
    for (int64_t i = 0; i < count; ++i) above |= !(scores[i] <= bars[i]);
    return above != 0;
}

// Items first ... stop - 1 for the users of a panel of C vectors, which begins at `user`.
template <int C, typename T>
void rank_panel(const T* panel, int64_t user, int64_t first, int64_t stop, Found<T>& found) {
    const Topk<T>& a = found.a;
    constexpr int64_t lanes = C * Simd<T>::lanes;
    const int64_t width = std::min(lanes, a.users - user);
    alignas(64) T sums[kSumRows * lanes];
    const T* rows[kSumRows];
    for (int64_t i = first; i < stop; i += kSumRows) {
        const int count = static_cast<int>(std::min<int64_t>(kSumRows, stop - i));
        for (int r = 0; r < count; ++r) rows[r] = a.items + (i + r) * a.depth;
        product_of<C, kSumRows>(count, rows, 1, panel, lanes, a.depth, sums);
        for (int r = 0; r < count; ++r) {
            T* scores = sums + r * lanes;
            if (a.bias != nullptr)
                for (int64_t l = 0; l < lanes; ++l) scores[l] += a.bias[i + r];
            if (!any_above(scores, found.bars + user, lanes)) continue;
            for (int64_t l = 0; l < width; ++l)
                if (!(scores[l] <= found.bars[user + l])) found.offer(user + l, i + r, scores[l]);
        }
    }
}

// The same for a number of vectors known at run time, 1 ... C.
template <int C, typename T>
void rank_panel_of(int64_t vectors, const T* panel, int64_t user, int64_t first, int64_t stop, Found<T>& found) {
    if (vectors >= C) return rank_panel<C>(panel, user, first, stop, found);
    if constexpr (C > 1) return rank_panel_of<C - 1>(vectors, panel, user, first, stop, found);
}

// scores[u] = Σ_k row[k] * h[u * depth + k], the same bits for any U. Not inlined, so that they are the same everywhere.
template <int U, typename T>
__attribute__((noinline)) void dots(const T* row, const T* h, int64_t depth, T* scores) {
    using Vector = typename Simd<T>::Vector;
    constexpr int lanes = Simd<T>::lanes;
    Vector sum[U] = {}, left, right;
    int64_t k = 0;
    for (; k + lanes <= depth; k += lanes) {
        __builtin_memcpy(&left, row + k, sizeof left);
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) {
            __builtin_memcpy(&right, h + u * depth + k, sizeof right);
            sum[u] += left * right;
        }
    }
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
        scores[u] = sum_of_lanes<T>(sum[u]);
        for (int64_t j = k; j < depth; ++j) scores[u] += row[j] * h[u * depth + j];
    }
}

// The same with the number of users, 1 ... U, known at run time.
template <int U, typename T>
FASTSEQ_INLINE void dots_of(int64_t users, const T* row, const T* h, int64_t depth, T* scores) {
    if (users == U) return dots<U>(row, h, depth, scores);
    if constexpr (U > 1) return dots_of<U - 1>(users, row, h, depth, scores);
}

// sums[r] = Σ_k rows[r][k] * user[k]; padded: a multiple of 32.
FASTSEQ_INLINE void four_code_dots(const int8_t* const* rows, const int16_t* user, int64_t padded, int32_t* sums) {
#ifdef __AVX2__
    __m256i sum[4];
#ifdef __AVX512BW__
    __m512i wide[4] = {};
    for (int64_t k = 0; k < padded; k += 32) {
        const __m512i values = _mm512_loadu_si512(user + k);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[r] + k));
            wide[r] = _mm512_add_epi32(wide[r], _mm512_madd_epi16(_mm512_cvtepi8_epi16(codes), values));
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r)
        // Masked: of the plain forms GCC 12 says that they read what is not set.
        sum[r] = _mm256_add_epi32(_mm512_maskz_extracti64x4_epi64(0xff, wide[r], 0),
                                  _mm512_maskz_extracti64x4_epi64(0xff, wide[r], 1));
#else
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) sum[r] = _mm256_setzero_si256();
    for (int64_t k = 0; k < padded; k += 16) {
        const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(user + k));
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[r] + k));
            sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(_mm256_cvtepi8_epi16(codes), values));
        }
    }
#endif
    const __m256i pairs = _mm256_hadd_epi32(sum[0], sum[1]), others = _mm256_hadd_epi32(sum[2], sum[3]);
    const __m256i halves = _mm256_hadd_epi32(pairs, others);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums),
                     _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)));
#else
    for (int r = 0; r < 4; ++r) {
        sums[r] = 0;
        for (int64_t k = 0; k < padded; ++k) sums[r] += rows[r][k] * user[k];
    }
#endif
}

// A user's vector in 16-bit integers, and what bounds the scores of items by their codes: with s an item's scale, step
// that of the user and q and p their integers, its score is at most s (step Σ q p + slack). Item and user lie within
// half a step of their integers, so the product of one with the other's rest is at most s |h|₁ / 2 and
// s step 127 depth / 2; the last term is for roundings of the sums, of float32 and here.
struct CodedUser {
    int16_t* values;
    float step, slack;

    // False where a magnitude is one at which float32 could overflow or lose its precision, in a partial sum too.
    template <typename T>
    bool set(const T* h, int64_t depth, int64_t padded) {
        double most = 0.0, sum = 0.0;
        for (int64_t k = 0; k < depth; ++k) {
            if (!std::isfinite(h[k])) return false;
            most = std::max<double>(most, std::fabs(h[k]));
            sum += std::fabs(h[k]);
        }
        const double range = std::min<double>(32767, std::floor(2147483647.0 / (128.0 * padded)));
        if (most < 0x1p-40 || sum > 0x1p60 || range < 127) return false;
        step = static_cast<float>(most / range);
        for (int64_t k = 0; k < padded; ++k)
            values[k] = k < depth ? static_cast<int16_t>(std::clamp(std::nearbyint(h[k] / static_cast<double>(step)), -range, range)) : 0;
        const double rests = 0.5001 * sum + 0.5001 * 127 * step * depth;
        slack = static_cast<float>(1.000001 * (rests + 128 * sum * (depth + 16) * 0x1p-23));
        return true;
    }
};

// Items first ... stop - 1 for a few users.
template <typename T>
void rank_few(int64_t first, int64_t stop, Found<T>& found) {
    const Topk<T>& a = found.a;
    T scores[kFewUsers];
    for (int64_t i = first; i < stop; ++i) {
        dots_of<kFewUsers>(a.users, a.items + i * a.depth, a.h, a.depth, scores);
        for (int64_t user = 0; user < a.users; ++user) {
            const T score = scores[user] + (a.bias == nullptr ? T(0) : a.bias[i]);
            if (!(score <= found.bars[user])) found.offer(user, i, score);
        }
    }
}

// The same by codes.
void rank_few(int64_t first, int64_t stop, const CodedUser* users, Found<float>& found) {
    const Topk<float>& a = found.a;
    const int8_t* rows[4];
    int32_t sums[4];
    float scale[4], bias[4] = {}, most[4];
    for (int64_t i = first; i < stop; i += 4) {
        const int64_t count = std::min<int64_t>(4, stop - i);
        for (int64_t r = 0; r < 4; ++r) {
            const int64_t row = i + std::min(r, count - 1);
            rows[r] = a.codes + row * a.padded;
            scale[r] = a.scales[row];
            if (a.bias != nullptr) bias[r] = a.bias[row];
        }
        for (int64_t user = 0; user < a.users; ++user) {
            const CodedUser& u = users[user];
            four_code_dots(rows, u.values, a.padded, sums);
            for (int r = 0; r < 4; ++r) most[r] = scale[r] * (u.step * static_cast<float>(sums[r]) + u.slack) + bias[r];
            const float bar = found.bars[user];
            if (most[0] <= bar && most[1] <= bar && most[2] <= bar && most[3] <= bar) continue;
            for (int64_t r = 0; r < count; ++r) {
                if (most[r] <= found.bars[user]) continue;
                float score;
                dots<1>(a.items + (i + r) * a.depth, a.h + user * a.depth, a.depth, &score);
                score += bias[r];
                if (!(score <= found.bars[user])) found.offer(user, i + r, score);
            }
        }
    }
}

}  // namespace

template <typename T>
int64_t topk(const Topk<T>& a) {
    constexpr int64_t lanes = Simd<T>::lanes, panel_users = kSumVectors * lanes;
    const bool few = a.users <= kFewUsers;
    const int64_t size = std::min(a.k, a.count), before = a.seen_offsets[0], entries = a.seen_offsets[a.users] - before;
    const int64_t columns = (a.users + lanes - 1) / lanes * lanes;  // users, in whole vectors
    Buffer<int64_t> seen(entries), ids(a.threads * a.users * size);
    Buffer<T> scores(a.threads * a.users * size), bars(a.threads * columns);
    Buffer<T> panels(few ? 0 : columns * a.depth), line(a.depth);
    Buffer<int16_t> values(few ? a.users * a.padded : 0);
    std::fill_n(ids.get(), a.threads * a.users * size, -1);
    std::fill_n(scores.get(), a.threads * a.users * size, -std::numeric_limits<T>::infinity());
    std::copy_n(a.seen + before, entries, seen.get());
    CodedUser coded[kFewUsers];
    bool by_codes = few && a.codes != nullptr;
    for (int64_t user = 0; user < a.users && by_codes; ++user) {
        coded[user].values = values.get() + user * a.padded;
        by_codes = coded[user].set(a.h + user * a.depth, a.depth, a.padded);
    }
    if (!few)
        for (int64_t user = 0; user < a.users; user += panel_users)
            pack_panel<Operand<T, false>>(Matrix<T>{a.h, a.depth, 1}, user, a.users,
                                          std::min(panel_users, columns - user), a.depth, line.get(),
                                          panels.get() + user * a.depth);
    const int64_t share = (a.count / (8 * a.threads) + kBlockItems) / kBlockItems * kBlockItems;
    const int64_t task = std::min(share, kMostItems), tasks = (a.count + task - 1) / task;
    int64_t nan = kNone;
#pragma omp parallel num_threads(a.threads) reduction(min : nan)
    {
        const int64_t thread = omp_get_thread_num();
        Found<T> found{a, seen.get(), scores.get() + thread * a.users * size, bars.get() + thread * columns,
                       ids.get() + thread * a.users * size, size};
        // Of lanes past the last user only NaN is above the bar.
        std::fill_n(found.bars, columns, std::numeric_limits<T>::infinity());
        std::fill_n(found.bars, a.users, -std::numeric_limits<T>::infinity());
#pragma omp for schedule(static)
        for (int64_t user = 0; user < a.users; ++user)
            std::sort(seen.get() + (a.seen_offsets[user] - before), seen.get() + (a.seen_offsets[user + 1] - before));
#pragma omp for schedule(monotonic : dynamic, 1)
        for (int64_t t = 0; t < tasks; ++t) {
            const int64_t first = t * task, stop = std::min(first + task, a.count);
            if constexpr (std::is_same_v<T, float>)
                if (by_codes) {
                    rank_few(first, stop, coded, found);
                    continue;
                }
            if (few) {
                rank_few(first, stop, found);
                continue;
            }
            for (int64_t block = first; block < stop; block += kBlockItems)
                for (int64_t user = 0; user < a.users; user += panel_users)
                    rank_panel_of<kSumVectors>((columns - user) / lanes, panels.get() + user * a.depth, user, block,
                                               std::min(block + kBlockItems, stop), found);
        }
#pragma omp for schedule(static)
        for (int64_t user = 0; user < a.users; ++user) {
            Heap<T> heap{a.best + user * a.k, a.ids + user * a.k, a.k};
            for (int64_t other = 0; other < a.threads; ++other)
                for (int64_t i = (other * a.users + user) * size, end = i + size; i < end; ++i) {
                    const T score = scores.get()[i];
                    const int64_t id = ids.get()[i];
                    if (id >= 0 && (score > heap.score[0] || (score == heap.score[0] && id < heap.id[0])))
                        heap.replace_worst(score, id);
                }
            if (a.last) heap.sort();
        }
        nan = found.nan;
    }
    return nan == kNone ? -1 : nan;
}

FASTSEQ_INSTANTIATE(topk)

}  // namespace fastseq::FASTSEQ_ISA
