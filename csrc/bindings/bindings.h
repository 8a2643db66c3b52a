// What the doors from Python share: checks of values that name the argument, and the list of doors.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "door.h"

namespace fastseq {

// Raises ValueError naming the argument unless its shape is as given (-1 matches any size).
inline void check_shape(const py::array& array, const char* name, std::initializer_list<int64_t> shape) {
    std::string want = "[", have = "[";
    bool same = array.ndim() == static_cast<py::ssize_t>(shape.size());
    int d = 0;
    for (int64_t size : shape) {
        want += (d ? ", " : "") + (size < 0 ? std::string("*") : std::to_string(size));
        if (same && size >= 0 && array.shape(d) != size) same = false;
        ++d;
    }
    if (same) return;
    for (int i = 0; i < array.ndim(); ++i) have += (i ? ", " : "") + std::to_string(array.shape(i));
    throw py::value_error(std::string(name) + " has shape " + have + "], expected " + want + "]");
}

// Raises ValueError unless offsets starts at 0, never decreases, and ends at total.
inline void check_offsets(const int32_t* offsets, int64_t count, int64_t total, const char* name) {
    if (count < 1) throw py::value_error(std::string(name) + " is empty, expected at least the 0 it starts with");
    if (offsets[0] != 0)
        throw py::value_error(std::string(name) + " must start at 0, not " + std::to_string(offsets[0]));
    for (int64_t i = 1; i < count; ++i)
        if (offsets[i] < offsets[i - 1])
            throw py::value_error(std::string(name) + " decreases at index " + std::to_string(i) + ": " +
                                  std::to_string(offsets[i - 1]) + " then " + std::to_string(offsets[i]));
    if (offsets[count - 1] != total)
        throw py::value_error(std::string(name) + " ends at " + std::to_string(offsets[count - 1]) +
                              ", expected the number of rows, " + std::to_string(total));
}

// Raises ValueError unless every sequence has at most max_len rows; offsets [count] checked before.
inline void check_lengths(const int32_t* offsets, int64_t count, int64_t max_len) {
    for (int64_t i = 1; i < count; ++i)
        if (offsets[i] - offsets[i - 1] > max_len)
            throw py::value_error("sequence " + std::to_string(i - 1) + " has " +
                                  std::to_string(offsets[i] - offsets[i - 1]) + " rows, more than max_len, " +
                                  std::to_string(max_len));
}

// Raises ValueError unless 0 <= value < end, for value = name[index].
inline void check_range(const char* name, int64_t index, int64_t value, int64_t end) {
    if (value < 0 || value >= end)
        throw py::value_error(std::string(name) + "[" + std::to_string(index) + "] is " + std::to_string(value) +
                              ", expected 0 <= value < " + std::to_string(end));
}

// The uint32 below which an element is dropped: round(p * 2^32).
inline uint32_t dropout_threshold(double p) {
    if (!(p >= 0.0 && p < 1.0)) throw py::value_error("p is " + std::to_string(p) + ", expected 0 <= p < 1");
    const double scaled = std::nearbyint(p * 4294967296.0);
    return scaled >= 4294967295.0 ? 4294967295u : static_cast<uint32_t>(scaled);
}

// One per file of this folder; module.cpp calls them all.
void bind_dropout(py::module_& m);
void bind_attention(py::module_& m);
void bind_topk(py::module_& m);
void bind_dropout_add_norm(py::module_& m);
void bind_cross_entropy(py::module_& m);
void bind_embed_sequence(py::module_& m);
void bind_bias_gelu_dropout(py::module_& m);
void bind_negatives(py::module_& m);
void bind_windows(py::module_& m);
void bind_gru(py::module_& m);
void bind_linear(py::module_& m);
void bind_sampled_loss(py::module_& m);
void bind_adam_rows(py::module_& m);
void bind_caser_windows(py::module_& m);
void bind_tape(py::module_& m);

}  // namespace fastseq
