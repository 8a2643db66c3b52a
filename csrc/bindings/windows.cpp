#include "windows.h"

#include <optional>

#include "bindings.h"

namespace fastseq {

static void check_length(int64_t max_len) {
    if (max_len < 1) throw py::value_error("max_len is " + std::to_string(max_len) + ", expected at least 1");
    if (max_len > INT32_MAX)
        throw py::value_error("max_len is " + std::to_string(max_len) + ", expected at most 2^31 - 1");
}

static void check_window_shape(const WindowShape& shape) {
    check_length(shape.max_len);
    if (shape.stride < 1 || shape.stride > shape.max_len)
        throw py::value_error("stride is " + std::to_string(shape.stride) + ", expected 1 ... max_len = " +
                              std::to_string(shape.max_len));
}

// Every user's training events must lie in the user's part of the tape.
static void check_stops(const int64_t* begin, const int64_t* end, int64_t users) {
    for (int64_t u = 0; u < users; ++u)
        if (begin[u] < 0 || end[u] < begin[u] || end[u] > begin[u + 1])
            throw py::value_error("stop[" + std::to_string(u) + "] is " + std::to_string(end[u]) +
                                  ", expected offsets[u] = " + std::to_string(begin[u]) +
                                  " <= stop[u] <= offsets[u + 1] = " + std::to_string(begin[u + 1]));
}

// Window `w` must lie on the tape, in its user's part of it, and its first target must follow one of its inputs.
static void check_window(const WindowArrays& windows, int64_t w, int64_t events, const int64_t* begins, int64_t users) {
    const int64_t start = windows.start[w], stop = windows.stop[w], first = windows.first_target[w];
    if (start < 0 || first <= start || stop < first || stop >= events)
        throw py::value_error("window " + std::to_string(w) + " has start " + std::to_string(start) + ", stop " +
                              std::to_string(stop) + ", first_target " + std::to_string(first) +
                              ", expected 0 <= start < first_target <= stop < " + std::to_string(events));
    if (windows.user[w] < 0 || windows.user[w] >= users)
        throw py::value_error("window " + std::to_string(w) + " has user " + std::to_string(windows.user[w]) +
                              ", expected 0 <= user < " + std::to_string(users));
    const int64_t begin = begins[windows.user[w]], end = begins[windows.user[w] + 1];
    if (begin < 0 || begin > start)
        throw py::value_error("window " + std::to_string(w) + " starts at " + std::to_string(start) +
                              ", expected a row of user " + std::to_string(windows.user[w]) + ", who begins at " +
                              std::to_string(begin) + " (user_offsets)");
    if (stop >= end)
        throw py::value_error("window " + std::to_string(w) + " has stop " + std::to_string(stop) +
                              ", expected a row of user " + std::to_string(windows.user[w]) + ", who ends before " +
                              std::to_string(end) + " (user_offsets)");
}

void bind_windows(py::module_& m) {
    define(m, "count_windows",
           {"offsets", "stop", "max_len", "stride", "per_target", "context"},
           "Number of training windows; checks offsets and stop",
           [](const Array<int64_t>& offsets, const Array<int64_t>& stop, int64_t max_len, int64_t stride,
              bool per_target, bool context) {
               check_shape(stop, "stop", {-1});
               check_shape(offsets, "offsets", {stop.shape(0) + 1});
               const WindowShape shape{max_len, stride, per_target, context};
               check_window_shape(shape);
               const int64_t *begin = offsets.data(), *end = stop.data(), users = stop.shape(0);
               check_stops(begin, end, users);
               py::gil_scoped_release release;
               return count_windows(begin, end, users, shape);
           });
    define(m, "pack_windows",
           {"offsets", "stop", "max_len", "stride", "per_target", "context", "user", "start", "window_stop",
            "first_target"},
           "Writes the windows that count_windows counted",
           [](const Array<int64_t>& offsets, const Array<int64_t>& stop, int64_t max_len, int64_t stride,
              bool per_target, bool context, Array<int64_t>& user, Array<int64_t>& start, Array<int64_t>& window_stop,
              Array<int64_t>& first_target) {
               check_shape(stop, "stop", {-1});
               check_shape(offsets, "offsets", {stop.shape(0) + 1});
               const WindowShape shape{max_len, stride, per_target, context};
               check_window_shape(shape);
               const int64_t *begin = offsets.data(), *end = stop.data(), users = stop.shape(0);
               check_stops(begin, end, users);
               const int64_t count = count_windows(begin, end, users, shape);
               check_shapes({count}, user, "user", start, "start", window_stop, "window_stop",
                            first_target, "first_target");
               const WindowArrays out{user.mutable_data(), start.mutable_data(), window_stop.mutable_data(),
                                      first_target.mutable_data()};
               py::gil_scoped_release release;
               pack_windows(begin, end, users, shape, out);
           });
    define(m, "gather_windows",
           {"tape", "user_offsets", "user", "start", "stop", "first_target", "order", "max_len", "items", "offsets",
            "users", "rows", "targets", "target_sequences", "l2_items", "l2_weights"},
           "Copies windows into a batch; returns the padding cells of the L2 term",
           [](const Array<int64_t>& tape, const Array<int64_t>& user_offsets, Array<int64_t>& user,
              Array<int64_t>& start, Array<int64_t>& stop, Array<int64_t>& first_target, const Array<int64_t>& order,
              int64_t max_len, Array<int64_t>& items, Array<int32_t>& offsets, Array<int64_t>& users,
              Array<int64_t>& rows, Array<int64_t>& targets, Array<int64_t>& target_sequences,
              OptionalArray<int64_t>& l2_items, OptionalArray<float>& l2_weights) {
               check_shape(tape, "tape", {-1});
               check_shape(user_offsets, "user_offsets", {-1});
               check_shape(user, "user", {-1});
               check_shape(order, "order", {-1});
               check_length(max_len);
               const int64_t n_windows = user.shape(0), count = order.shape(0);
               check_shapes({n_windows}, start, "start", stop, "stop", first_target, "first_target");
               const WindowArrays windows{user.mutable_data(), start.mutable_data(), stop.mutable_data(),
                                          first_target.mutable_data()};
               const int64_t* window = order.data();
               const int64_t* begins = user_offsets.data();
               int64_t n_events = 0, n_targets = 0, n_history = 0;
               for (int64_t b = 0; b < count; ++b) {
                   const int64_t w = window[b];
                   if (w < 0 || w >= n_windows)
                       throw py::value_error("order[" + std::to_string(b) + "] is " + std::to_string(w) +
                                             ", expected 0 <= window < " + std::to_string(n_windows));
                   check_window(windows, w, tape.shape(0), begins, user_offsets.shape(0) - 1);
                   n_events += windows.stop[w] - windows.start[w];
                   n_targets += windows.stop[w] - windows.first_target[w] + 1;
                   const int64_t begin = begins[windows.user[w]], reach = windows.first_target[w] - max_len;
                   n_history += windows.stop[w] - (reach > begin ? reach : begin);
               }
               if (n_events > INT32_MAX)
                   throw py::value_error("the batch has " + std::to_string(n_events) +
                                         " input events, more than int32 offsets can hold: lower batch_size");
               check_shape(items, "items", {n_events});
               check_shape(offsets, "offsets", {count + 1});
               check_shape(users, "users", {count});
               check_shapes({n_targets}, rows, "rows", targets, "targets", target_sequences, "target_sequences");
               if (l2_items.has_value() != l2_weights.has_value())
                   throw py::value_error("l2_items and l2_weights must both be given or both be None");
               if (l2_items) {
                   check_shapes({n_history}, *l2_items, "l2_items", *l2_weights, "l2_weights");
               }
               const BatchArrays out{items.mutable_data(),
                                     offsets.mutable_data(),
                                     users.mutable_data(),
                                     rows.mutable_data(),
                                     targets.mutable_data(),
                                     target_sequences.mutable_data(),
                                     l2_items ? l2_items->mutable_data() : nullptr,
                                     l2_weights ? l2_weights->mutable_data() : nullptr};
               const int64_t* events = tape.data();
               py::gil_scoped_release release;
               return gather_windows(events, begins, windows, window, count, max_len, out);
           });
}

}  // namespace fastseq
