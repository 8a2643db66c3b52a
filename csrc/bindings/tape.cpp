#include "tape.h"

#include <pybind11/stl.h>

#include <optional>

#include "bindings.h"

namespace fastseq {
namespace {

template <typename T, typename Kernel>
void build(Kernel kernel, const Array<int32_t>& users, const Array<int32_t>& items,
           const std::optional<Array<T>>& times, Array<int64_t>& offsets, Array<int64_t>& tape,
           std::optional<Array<T>>& tape_times, int threads) {
    check_shape(users, "users", {-1});
    const int64_t n = users.shape(0);
    check_shape(items, "items", {n});
    check_shape(tape, "tape", {n});
    check_shape(offsets, "offsets", {-1});
    if (offsets.shape(0) < 1) throw py::value_error("offsets is empty, expected [n_users + 1]");
    if (times.has_value() != tape_times.has_value())
        throw py::value_error("times and tape_times must both be given or both be None");
    if (times) {
        check_shape(*times, "times", {n});
        check_shape(*tape_times, "tape_times", {n});
    }
    if (threads < 1) throw py::value_error("threads is " + std::to_string(threads) + ", expected at least 1");
    const int64_t n_users = offsets.shape(0) - 1;
    const int32_t *user = users.data(), *item = items.data();
    const T* time = times ? times->data() : nullptr;
    int64_t *offset = offsets.mutable_data(), *out = tape.mutable_data();
    T* out_time = tape_times ? tape_times->mutable_data() : nullptr;
    int64_t bad;
    {
        py::gil_scoped_release release;
        bad = kernel(user, item, time, n, n_users, offset, out, out_time, threads);
    }
    if (bad >= 0)
        throw py::value_error("users[" + std::to_string(bad) + "] is " + std::to_string(user[bad]) +
                              ", expected 0 <= user < " + std::to_string(n_users));
}

}  // namespace

void bind_tape(py::module_& m) {
    m.def(
        "build_tape",
        [](const Array<int32_t>& users, const Array<int32_t>& items, const std::optional<Array<int64_t>>& times,
           Array<int64_t>& offsets, Array<int64_t>& tape, std::optional<Array<int64_t>>& tape_times, int threads) {
            build<int64_t>([](auto... a) { return build_tape_i64(a...); }, users, items, times, offsets, tape,
                           tape_times, threads);
        },
        py::arg("users").noconvert(), py::arg("items").noconvert(), py::arg("times").noconvert(),
        py::arg("offsets").noconvert(), py::arg("tape").noconvert(), py::arg("tape_times").noconvert(),
        py::arg("threads"), "Fills offsets, tape and tape_times: rows sorted by user, then time, then row.");
    m.def(
        "build_tape",
        [](const Array<int32_t>& users, const Array<int32_t>& items, const std::optional<Array<double>>& times,
           Array<int64_t>& offsets, Array<int64_t>& tape, std::optional<Array<double>>& tape_times, int threads) {
            build<double>([](auto... a) { return build_tape_f64(a...); }, users, items, times, offsets, tape,
                          tape_times, threads);
        },
        py::arg("users").noconvert(), py::arg("items").noconvert(), py::arg("times").noconvert(),
        py::arg("offsets").noconvert(), py::arg("tape").noconvert(), py::arg("tape_times").noconvert(),
        py::arg("threads"));
}

}  // namespace fastseq
