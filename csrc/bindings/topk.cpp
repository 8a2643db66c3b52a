#include "topk.h"

#include "bindings.h"

namespace fastseq {
namespace {

// Raises ValueError unless every row's list lies inside seen_items and names existing items.
void check_seen(const int64_t* offsets, int64_t rows, const int64_t* seen, int64_t count, int64_t items,
                int64_t first_row) {
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t start = offsets[row], stop = offsets[row + 1];
        if (start < 0 || stop < start || stop > count)
            throw py::value_error("seen_offsets gives row " + std::to_string(first_row + row) + " the range " +
                                  std::to_string(start) + " to " + std::to_string(stop) + " of " +
                                  std::to_string(count) + " seen items");
        for (int64_t i = start; i < stop; ++i)
            if (seen[i] < 0 || seen[i] >= items)
                throw py::value_error("seen_items[" + std::to_string(i) + "] (row " +
                                      std::to_string(first_row + row) + ") is " + std::to_string(seen[i]) +
                                      ", expected 0 <= id < " + std::to_string(items));
    }
}

template <typename T, typename Kernel>
auto merge_door(Kernel merge) {
    return [merge](Array<T>& scores, const Array<int64_t>& seen_offsets, const Array<int64_t>& seen_items,
                   Array<T>& best, Array<int64_t>& ids, int64_t first_row, int64_t first_item, int64_t n_items,
                   Threads threads) {
        check_shape(scores, "scores", {-1, -1});
        const int64_t rows = scores.shape(0), columns = scores.shape(1);
        if (first_row < 0) throw py::value_error("first_row is " + std::to_string(first_row) + ", expected at least 0");
        if (n_items < columns)
            throw py::value_error("n_items is " + std::to_string(n_items) + ", expected at least " +
                                  std::to_string(columns) + ", the columns of scores");
        if (first_item < 0 || first_item > n_items - columns)
            throw py::value_error("first_item is " + std::to_string(first_item) + ", expected 0 to " +
                                  std::to_string(n_items - columns) + ": scores has " + std::to_string(columns) +
                                  " columns of " + std::to_string(n_items) + " items");
        check_shape(seen_offsets, "seen_offsets", {rows + 1});
        check_shape(seen_items, "seen_items", {-1});
        check_shape(best, "best", {rows, -1});
        const int64_t k = best.shape(1);
        if (k < 1) throw py::value_error("best has k = 0 columns, expected at least 1");
        check_shape(ids, "ids", {rows, k});
        T *in = scores.mutable_data(), *out = best.mutable_data();
        int64_t* chosen = ids.mutable_data();
        const int64_t *offsets = seen_offsets.data(), *seen = seen_items.data(), count = seen_items.size();
        int64_t nan;
        {
            py::gil_scoped_release release;
            check_seen(offsets, rows, seen, count, n_items, first_row);
            nan = merge(in, rows, columns, first_item, offsets, seen, k, out, chosen, threads);
        }
        if (nan >= 0)
            throw py::value_error("scores: the score of row " + std::to_string(first_row + nan / columns) + " and item " +
                                  std::to_string(first_item + nan % columns) +
                                  " is NaN: h, weight or bias holds a NaN or an infinity");
    };
}

template <typename T, typename Kernel>
auto sort_door(Kernel sort) {
    return [sort](Array<T>& best, Array<int64_t>& ids, Threads threads) {
        check_shape(best, "best", {-1, -1});
        const int64_t rows = best.shape(0), k = best.shape(1);
        check_shape(ids, "ids", {rows, k});
        T* out = best.mutable_data();
        int64_t* chosen = ids.mutable_data();
        py::gil_scoped_release release;
        sort(rows, k, out, chosen, threads);
    };
}

}  // namespace

void bind_topk(py::module_& m) {
    define(m, "topk_merge",
           {"scores", "seen_offsets", "seen_items", "best", "ids", "first_row", "first_item", "n_items", "threads"},
           "Merges scores [rows, columns], which it changes, into the heaps best and ids [rows, k]",
           merge_door<float>([](auto&&... a) { return topk_merge_f32(a...); }),
           merge_door<double>([](auto&&... a) { return topk_merge_f64(a...); }));
    define(m, "topk_sort", {"best", "ids", "threads"}, "Sorts the heaps, best first",
           sort_door<float>([](auto&&... a) { topk_sort_f32(a...); }),
           sort_door<double>([](auto&&... a) { topk_sort_f64(a...); }));
}

}  // namespace fastseq
