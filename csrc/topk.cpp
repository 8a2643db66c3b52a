// Selection of the k best by a heap whose root is the worst of those kept. Items are scanned in the order of their
// ids and must beat the root strictly to enter, so among equal scores the smaller id stays, at the boundary too.
// Most items do not: blocks of 64 are compared with the root at once and skipped.
#include "topk.h"

#include <limits>

namespace fastseq::FASTSEQ_ISA {
namespace {

constexpr int kBlock = 64;

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
        const T s = score[a];
        const int64_t i = id[a];
        score[a] = score[b];
        id[a] = id[b];
        score[b] = s;
        id[b] = i;
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
    // Best first.
    void sort() {
        for (int64_t last = size - 1; last > 0; --last) {
            swap(0, last);
            sink(0, last);
        }
    }
};

// Whether any of the scores may enter: above the bar, or NaN.
template <typename T>
bool any_above(const T* scores, int64_t count, T bar) {
    int above = 0;
#pragma omp simd reduction(| : above)
    for (int64_t i = 0; i < count; ++i) above |= !(scores[i] <= bar);
    return above != 0;
}

// Offers a row of the tile to its heap; returns the first column that is NaN, or -1.
template <typename T>
int64_t offer(const T* scores, int64_t columns, int64_t first_item, Heap<T> heap) {
    for (int64_t block = 0; block < columns; block += kBlock) {
        const int64_t stop = block + kBlock < columns ? block + kBlock : columns;
        if (!any_above(scores + block, stop - block, heap.score[0])) continue;
        for (int64_t i = block; i < stop; ++i) {
            if (scores[i] <= heap.score[0]) continue;
            if (scores[i] != scores[i]) return i;
            heap.score[0] = scores[i];
            heap.id[0] = first_item + i;
            heap.sink(0, heap.size);
        }
    }
    return -1;
}

}  // namespace

template <typename T>
int64_t topk_merge(T* scores, int64_t rows, int64_t columns, int64_t first_item, const int64_t* seen_offsets,
                   const int64_t* seen, int64_t k, T* best, int64_t* ids, int threads) {
    constexpr int64_t none = std::numeric_limits<int64_t>::max();
    int64_t nan = none;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(min : nan)
    for (int64_t row = 0; row < rows; ++row) {
        T* tile = scores + row * columns;
        for (int64_t s = seen_offsets[row]; s < seen_offsets[row + 1]; ++s) {
            const int64_t column = seen[s] - first_item;
            if (column >= 0 && column < columns) tile[column] = -std::numeric_limits<T>::infinity();
        }
        const int64_t column = offer(tile, columns, first_item, Heap<T>{best + row * k, ids + row * k, k});
        if (column >= 0 && row * columns + column < nan) nan = row * columns + column;
    }
    return nan == none ? -1 : nan;
}

template <typename T>
void topk_sort(int64_t rows, int64_t k, T* best, int64_t* ids, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) Heap<T>{best + row * k, ids + row * k, k}.sort();
}

FASTSEQ_INSTANTIATE(topk_merge)
FASTSEQ_INSTANTIATE(topk_sort)

}  // namespace fastseq::FASTSEQ_ISA
