// What the functions of fastseq._C share: how they are bound, which arrays they take, and checks of whatever would
// become a bad address. Their messages are short: fastseq/ops says what is wrong, for every implementation.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "dropout.h"

namespace fastseq {

namespace py = pybind11;

// A numpy array of exactly this dtype, aligned and C-contiguous. Any other raises TypeError: none is converted or
// copied. mutable_data() of a read-only one raises ValueError.
template <typename T, int flags = py::array::c_style>
struct Array : py::array_t<T, flags> {
    using py::array_t<T, flags>::array_t;
    static bool check_(py::handle object) {
        constexpr int needed = flags | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
        return py::array_t<T, flags>::check_(object) && py::detail::check_flags(object.ptr(), needed);
    }
};

// The same with any strides.
template <typename T>
using StridedArray = Array<T, 0>;

template <typename T>
using OptionalArray = std::optional<Array<T>>;

// A number of threads, 1 to 1024: libgomp ends the process where it cannot start as many as it was asked for.
struct Threads {
    int count = 1;
    operator int() const { return count; }
};

}  // namespace fastseq

namespace pybind11::detail {

template <typename T, int flags>
struct handle_type_name<fastseq::Array<T, flags>> : handle_type_name<array_t<T, flags>> {};

template <>
struct type_caster<fastseq::Threads> {
    PYBIND11_TYPE_CASTER(fastseq::Threads, const_name("int"));
    bool load(handle source, bool) {
        make_caster<int> number;
        if (!number.load(source, false)) return false;
        value.count = cast_op<int>(number);
        if (value.count < 1 || value.count > 1024)
            throw value_error("threads is " + std::to_string(value.count) + ", expected 1 to 1024");
        return true;
    }
};

}  // namespace pybind11::detail

namespace fastseq {

template <std::size_t N, std::size_t... I, typename F>
void define_one(py::module_& m, const char* name, const char* const (&arguments)[N], const char* doc, F function,
                std::index_sequence<I...>) {
    m.def(name, function, doc, py::arg(arguments[I]).noconvert()...);
}

// Binds `name` to a function with these arguments, or to its overloads for float and double.
template <std::size_t N, typename... F>
void define(py::module_& m, const char* name, const char* const (&arguments)[N], const char* doc, F... overloads) {
    (define_one(m, name, arguments, doc, overloads, std::make_index_sequence<N>{}), ...);
}

// Raises ValueError naming the argument unless its shape is as expected (-1 matches any size).
inline void check_shape(const py::array& array, const char* name, std::initializer_list<int64_t> shape) {
    std::string have, want;
    bool same = array.ndim() == static_cast<py::ssize_t>(shape.size());
    int d = 0;
    for (const int64_t size : shape) {
        if (same && size >= 0 && array.shape(d) != size) same = false;
        ++d;
    }
    if (same) return;
    for (const int64_t size : shape) want += (want.empty() ? "" : ", ") + (size < 0 ? "*" : std::to_string(size));
    for (int i = 0; i < array.ndim(); ++i) have += (i ? ", " : "") + std::to_string(array.shape(i));
    throw py::value_error(std::string(name) + " has shape [" + have + "], expected [" + want + "]");
}

// The same for several arrays, each before its name.
inline void check_shapes(std::initializer_list<int64_t>) {}
template <typename... More>
void check_shapes(std::initializer_list<int64_t> shape, const py::array& array, const char* name, const More&... more) {
    check_shape(array, name, shape);
    check_shapes(shape, more...);
}

// Null where the array is None; else its data, after the check of its shape.
template <typename T>
T* optional_data(OptionalArray<T>& array, const char* name, std::initializer_list<int64_t> shape) {
    if (!array) return nullptr;
    check_shape(*array, name, shape);
    return array->mutable_data();
}

template <typename T>
const T* optional_data(const OptionalArray<T>& array, const char* name, std::initializer_list<int64_t> shape) {
    if (!array) return nullptr;
    check_shape(*array, name, shape);
    return array->data();
}

// Raises ValueError unless least <= value <= most, for the argument `name`.
inline void check_number(const char* name, int64_t value, int64_t least, int64_t most = INT64_MAX) {
    if (value < least || value > most)
        throw py::value_error(std::string(name) + " is " + std::to_string(value) + ", expected " +
                              std::to_string(least) + " to " + std::to_string(most));
}

// Raises ValueError unless least <= value < end, for value = name[index].
inline void check_range(const char* name, int64_t index, int64_t value, int64_t end, int64_t least = 0) {
    if (value < least || value >= end)
        throw py::value_error(std::string(name) + "[" + std::to_string(index) + "] is " + std::to_string(value) +
                              ", expected " + std::to_string(least) + " <= value < " + std::to_string(end));
}

// The same for every entry of an array.
template <typename I>
void check_ids(const Array<I>& ids, const char* name, int64_t end, int64_t least = 0) {
    const I* id = ids.data();
    for (int64_t i = 0, size = ids.size(); i < size; ++i) check_range(name, i, id[i], end, least);
}

// Raises ValueError unless offsets rises from 0 to rows, in steps of 0 to max_len.
inline void check_offsets(const Array<int32_t>& offsets, int64_t rows, int64_t max_len = INT32_MAX) {
    check_shape(offsets, "offsets", {-1});
    const int64_t count = offsets.shape(0);
    const int32_t* offset = offsets.data();
    bool rises = count > 0 && offset[0] == 0 && offset[count - 1] == rows;
    for (int64_t i = 1; i < count && rises; ++i) {
        const int64_t length = static_cast<int64_t>(offset[i]) - offset[i - 1];
        rises = length >= 0 && length <= max_len;
    }
    if (!rises)
        throw py::value_error("offsets must rise from 0 to " + std::to_string(rows) + " in steps of 0 to " +
                              std::to_string(max_len));
}

// The threshold and the scale of fastseq/ops/philox.py.
inline Dropout make_dropout(double p, int64_t seed, int64_t step, uint32_t site) {
    if (!(p >= 0.0 && p < 1.0)) throw py::value_error("p is " + std::to_string(p) + ", expected 0 <= p < 1");
    const double threshold = p > 0.0 ? std::clamp(std::nearbyint(p * 65536.0), 1.0, 65535.0) : 0.0;
    return {Rng(seed, step), site, static_cast<uint16_t>(threshold), 65536.0 / (65536.0 - threshold)};
}

}  // namespace fastseq
