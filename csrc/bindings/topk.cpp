#include "topk.h"

#include "bindings.h"

namespace fastseq {
namespace {

// Raises ValueError unless every row's list lies inside seen_items and names existing items.
void check_seen(const int64_t* offsets, int64_t rows, const int64_t* seen, int64_t count, int64_t items) {
    for (int64_t row = 0; row < rows; ++row) {
        if (offsets[row] < 0 || offsets[row + 1] < offsets[row] || offsets[row + 1] > count)
            throw py::value_error("seen_offsets of row " + std::to_string(row) + " are " +
                                  std::to_string(offsets[row]) + ", " + std::to_string(offsets[row + 1]));
        for (int64_t i = offsets[row]; i < offsets[row + 1]; ++i) check_range("seen_items", i, seen[i], items);
    }
}

template <typename T>
void merge(Array<T>& scores, const Array<int64_t>& seen_offsets, const Array<int64_t>& seen_items, Array<T>& best,
           Array<int64_t>& ids, int64_t first_row, int64_t first_item, int64_t n_items, Threads threads) {
    check_shape(scores, "scores", {-1, -1});
    const int64_t rows = scores.shape(0), columns = scores.shape(1);
    check_number("first_row", first_row, 0);
    check_number("n_items", n_items, columns);
    check_number("first_item", first_item, 0, n_items - columns);
    check_shape(seen_offsets, "seen_offsets", {rows + 1});
    check_shape(seen_items, "seen_items", {-1});
    check_shape(best, "best", {rows, -1});
    const int64_t k = best.shape(1);
    check_number("best.shape[1]", k, 1);
    check_shape(ids, "ids", {rows, k});
    T *in = scores.mutable_data(), *out = best.mutable_data();
    int64_t* items = ids.mutable_data();
    const int64_t *offsets = seen_offsets.data(), *seen = seen_items.data(), count = seen_items.size();
    int64_t nan;
    {
        py::gil_scoped_release release;
        check_seen(offsets, rows, seen, count, n_items);
        nan = topk_merge(in, rows, columns, first_item, offsets, seen, k, out, items, threads);
    }
    if (nan >= 0)
        throw py::value_error("scores: the score of row " + std::to_string(first_row + nan / columns) + " and item " +
                              std::to_string(first_item + nan % columns) +
                              " is NaN: h, weight or bias holds a NaN or an infinity");
}

template <typename T>
void sort(Array<T>& best, Array<int64_t>& ids, Threads threads) {
    check_shape(best, "best", {-1, -1});
    const int64_t rows = best.shape(0), k = best.shape(1);
    check_shape(ids, "ids", {rows, k});
    T* out = best.mutable_data();
    int64_t* items = ids.mutable_data();
    py::gil_scoped_release release;
    topk_sort(rows, k, out, items, threads);
}

}  // namespace

void bind_topk(py::module_& m) {
    define(m, "topk_merge",
           {"scores", "seen_offsets", "seen_items", "best", "ids", "first_row", "first_item", "n_items", "threads"},
           "Merges scores [rows, columns], which it changes, into the heaps best and ids [rows, k]",
           &merge<float>, &merge<double>);
    define(m, "topk_sort", {"best", "ids", "threads"}, "Sorts the heaps, best first",
           &sort<float>, &sort<double>);
}

}  // namespace fastseq
