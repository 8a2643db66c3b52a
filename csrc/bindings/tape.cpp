#include "tape.h"

#include "bindings.h"

namespace fastseq {
namespace {

template <typename T>
void build(const Array<int32_t>& users, const Array<int32_t>& items,
           const OptionalArray<T>& times, Array<int64_t>& offsets, Array<int64_t>& tape,
           OptionalArray<T>& tape_times, Threads threads) {
    check_shape(users, "users", {-1});
    const int64_t n = users.shape(0);
    check_shapes({n}, items, "items", tape, "tape");
    check_shape(offsets, "offsets", {-1});
    if (offsets.shape(0) < 1) throw py::value_error("offsets is empty, expected [n_users + 1]");
    if (times.has_value() != tape_times.has_value())
        throw py::value_error("times and tape_times must both be given or both be None");
    if (times) {
        check_shapes({n}, *times, "times", *tape_times, "tape_times");
        const T* time = times->data();
        for (int64_t i = 0; i < n; ++i)
            if (time[i] != time[i])
                throw py::value_error("times[" + std::to_string(i) + "] is NaN, which has no place in an order");
    }
    const int64_t n_users = offsets.shape(0) - 1;
    const int32_t *user = users.data(), *item = items.data();
    const T* time = times ? times->data() : nullptr;
    int64_t *offset = offsets.mutable_data(), *out = tape.mutable_data();
    T* out_time = tape_times ? tape_times->mutable_data() : nullptr;
    int64_t bad;
    {
        py::gil_scoped_release release;
        bad = build_tape(user, item, time, n, n_users, offset, out, out_time, threads);
    }
    if (bad >= 0) check_range("users", bad, user[bad], n_users);
}

}  // namespace

void bind_tape(py::module_& m) {
    define(m, "build_tape", {"users", "items", "times", "offsets", "tape", "tape_times", "threads"},
           "Fills offsets, tape and tape_times: rows sorted by user, then time, then row.",
           &build<int64_t>, &build<double>);
}

}  // namespace fastseq
