#include "topk.h"

#include <algorithm>

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

template <typename T, typename Merge, typename Sort>
void define(py::module_& m, Merge merge, Sort sort) {
    m.def(
        "topk_merge",
        [merge](Array<T>& scores, const Array<int64_t>& seen_offsets, const Array<int64_t>& seen_items,
                Array<T>& best, Array<int64_t>& ids, int64_t first_row, int64_t first_item, int64_t n_items,
                int threads) {
            check_shape(scores, "scores", {-1, -1});
            const int64_t rows = scores.shape(0), columns = scores.shape(1);
            check_shape(seen_offsets, "seen_offsets", {rows + 1});
            check_shape(seen_items, "seen_items", {-1});
            check_shape(best, "best", {rows, -1});
            const int64_t k = best.shape(1);
            if (k < 1) throw py::value_error("k is " + std::to_string(k) + ", expected at least 1");
            check_shape(ids, "ids", {rows, k});
            T *in = scores.mutable_data(), *out = best.mutable_data();
            int64_t* chosen = ids.mutable_data();
            const int64_t *offsets = seen_offsets.data(), *seen = seen_items.data(), count = seen_items.size();
            int64_t nan;
            {
                py::gil_scoped_release release;
                check_seen(offsets, rows, seen, count, n_items, first_row);
                nan = merge(in, rows, columns, first_item, offsets, seen, k, out, chosen, std::max(threads, 1));
            }
            if (nan >= 0)
                throw py::value_error("the score of row " + std::to_string(first_row + nan / columns) + " and item " +
                                      std::to_string(first_item + nan % columns) +
                                      " is NaN: h, weight or bias holds a NaN or an infinity");
        },
        py::arg("scores").noconvert(), py::arg("seen_offsets").noconvert(), py::arg("seen_items").noconvert(),
        py::arg("best").noconvert(), py::arg("ids").noconvert(), py::arg("first_row"), py::arg("first_item"),
        py::arg("n_items"), py::arg("threads"),
        "Merges scores [rows, columns], which it changes, into the heaps best and ids [rows, k]");
    m.def(
        "topk_sort",
        [sort](Array<T>& best, Array<int64_t>& ids, int threads) {
            check_shape(best, "best", {-1, -1});
            const int64_t rows = best.shape(0), k = best.shape(1);
            check_shape(ids, "ids", {rows, k});
            T* out = best.mutable_data();
            int64_t* chosen = ids.mutable_data();
            py::gil_scoped_release release;
            sort(rows, k, out, chosen, std::max(threads, 1));
        },
        py::arg("best").noconvert(), py::arg("ids").noconvert(), py::arg("threads"), "Sorts the heaps, best first");
}

}  // namespace

void bind_topk(py::module_& m) {
    define<float>(m, [](auto&&... a) { return topk_merge_f32(a...); }, [](auto&&... a) { topk_sort_f32(a...); });
    define<double>(m, [](auto&&... a) { return topk_merge_f64(a...); }, [](auto&&... a) { topk_sort_f64(a...); });
}

}  // namespace fastseq
