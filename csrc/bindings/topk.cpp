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
void rank(const Array<T>& h, const Array<T>& items, const OptionalArray<T>& bias, const OptionalArray<int8_t>& codes,
          const OptionalArray<float>& scales, const Array<int64_t>& seen_offsets, const Array<int64_t>& seen_items,
          Array<T>& best, Array<int64_t>& ids, int64_t first_user, int64_t first_item, int64_t n_items,
          Threads threads) {
    check_shape(h, "h", {-1, -1});
    Topk<T> a;
    a.users = h.shape(0), a.depth = h.shape(1);
    check_shape(items, "items", {-1, a.depth});
    a.count = items.shape(0);
    check_number("first_user", first_user, 0);
    check_number("n_items", n_items, a.count);
    check_number("first_item", first_item, 0, n_items - a.count);
    check_shape(seen_offsets, "seen_offsets", {a.users + 1});
    check_shape(seen_items, "seen_items", {-1});
    check_shape(best, "best", {a.users, -1});
    a.k = best.shape(1);
    check_number("best.shape[1]", a.k, 1);
    check_shape(ids, "ids", {a.users, a.k});
    if (codes.has_value() != scales.has_value()) throw py::value_error("codes and scales go together");
    a.codes = optional_data(codes, "codes", {a.count, -1});
    a.scales = optional_data(scales, "scales", {a.count});
    a.padded = codes ? codes->shape(1) : 0;
    if (codes && (a.padded < a.depth || a.padded % 32 != 0))
        throw py::value_error("codes has " + std::to_string(a.padded) + " columns, expected a multiple of 32, at least " +
                              std::to_string(a.depth));
    a.h = h.data(), a.items = items.data(), a.bias = optional_data(bias, "bias", {a.count});
    a.seen_offsets = seen_offsets.data(), a.seen = seen_items.data();
    a.first_item = first_item, a.last = first_item + a.count == n_items;
    a.best = best.mutable_data(), a.ids = ids.mutable_data(), a.threads = threads;
    const int64_t entries = seen_items.size();
    int64_t nan = -1;
    {
        py::gil_scoped_release release;
        check_seen(a.seen_offsets, a.users, a.seen, entries, n_items);
        if (a.users > 0 && a.count > 0) nan = topk(a);
    }
    if (nan >= 0)
        throw py::value_error("scores: the score of row " + std::to_string(first_user + nan / a.count) + " and item " +
                              std::to_string(first_item + nan % a.count) +
                              " is NaN: h, weight or bias holds a NaN or an infinity");
}

}  // namespace

void bind_topk(py::module_& m) {
    define(m, "topk",
           {"h", "items", "bias", "codes", "scales", "seen_offsets", "seen_items", "best", "ids", "first_user",
            "first_item", "n_items", "threads"},
           "Adds the best of the items [n, d], a part, to best and ids [B, k]", &rank<float>, &rank<double>);
}

}  // namespace fastseq
