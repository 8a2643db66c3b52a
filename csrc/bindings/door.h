// A door: one Python function of fastseq._C, whose exceptions name the argument.
//
// pybind11 tells a caller who passes a wrong dtype or stride only that no overload matches. So a door takes every
// argument as an object, chooses the overload by the first array whose type tells the overloads apart, and loads each
// argument itself: what a C++ parameter says (type, const or not) is what is checked, without copies or conversions.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace fastseq {

namespace py = pybind11;

// A C-contiguous numpy array of exactly this dtype. As `Array<T>&` it is written to, as `const Array<T>&` it is not.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// The same with any strides.
template <typename T>
using StridedArray = py::array_t<T, 0>;

// An array, or None.
template <typename T>
using OptionalArray = std::optional<Array<T>>;

// A number of threads: libgomp ends the process where it cannot start as many as it was asked for.
struct Threads {
    static constexpr int most = 1024;
    int count;
    operator int() const { return count; }
};

// An object as a message shows it: how an array is stored, or else the value and its type.
inline std::string described(py::handle given) {
    if (!py::isinstance<py::array>(given)) {
        std::string text = py::repr(given);
        if (text.size() > 60) text = text.substr(0, 60) + "...";
        return given.is_none() ? text : text + " (" + Py_TYPE(given.ptr())->tp_name + ")";
    }
    const auto array = py::reinterpret_borrow<py::array>(given);
    const auto listed = [&array](const py::ssize_t* values) {
        std::string text = "[";
        for (py::ssize_t d = 0; d < array.ndim(); ++d) text += (d ? ", " : "") + std::to_string(values[d]);
        return text + "]";
    };
    std::string text = std::string(py::str(array.dtype())) + " of shape " + listed(array.shape());
    if (!(array.flags() & py::array::c_style)) text += " with strides " + listed(array.strides()) + " bytes";
    if (!(array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) text += ", not aligned";
    return text;
}

// How one argument is described, and loaded from what was given. `output`: the function writes to it; `also`: what else
// a message calls expected.
template <typename T>
struct Argument {  // numbers, flags, texts
    static std::string expected() {
        if constexpr (std::is_same_v<T, bool>) return "True or False";
        else if constexpr (std::is_integral_v<T>)
            return "an integer from " + std::to_string(std::numeric_limits<T>::min()) + " to " +
                   std::to_string(std::numeric_limits<T>::max());
        else if constexpr (std::is_floating_point_v<T>) return "a number";
        else return "a str";
    }
    static T load(py::handle given, const char* name, bool, const char* also = "") {
        py::detail::make_caster<T> caster;
        if (caster.load(given, std::is_floating_point_v<T>)) return py::detail::cast_op<T>(std::move(caster));
        PyErr_Clear();
        const std::string message = std::string(name) + " is " + described(given) + ", expected " + expected() + also;
        if (std::is_integral_v<T> && PyLong_Check(given.ptr())) throw py::value_error(message);
        throw py::type_error(message);
    }
};

template <>
struct Argument<Threads> {
    static Threads load(py::handle given, const char* name, bool) {
        const int count = Argument<int>::load(given, name, false);
        if (count < 1 || count > Threads::most)
            throw py::value_error(std::string(name) + " is " + std::to_string(count) + ", expected 1 to " +
                                  std::to_string(Threads::most));
        return {count};
    }
};

template <typename T, int flags>
struct Argument<py::array_t<T, flags>> {
    static constexpr bool contiguous = (flags & py::array::c_style) != 0;

    static std::string type() { return py::str(py::dtype::of<T>()); }
    static std::string expected() { return (contiguous ? "a C-contiguous " : "a ") + type() + " array"; }
    static bool has_type(py::handle given) { return StridedArray<T>::check_(given); }

    static py::array_t<T, flags> load(py::handle given, const char* name, bool output, const char* also = "") {
        const int wanted = py::detail::npy_api::NPY_ARRAY_ALIGNED_ | (contiguous ? py::array::c_style : 0);
        if (!has_type(given) || (py::reinterpret_borrow<py::array>(given).flags() & wanted) != wanted)
            throw py::type_error(std::string(name) + " is " + described(given) + ", expected " + expected() +
                                 also);
        auto array = py::reinterpret_borrow<py::array_t<T, flags>>(given);
        if (output && !array.writeable())
            throw py::value_error(std::string(name) + " is read-only, expected an array to write to");
        return array;
    }
};

template <typename T>
struct Argument<std::optional<T>> {
    static std::string type() { return Argument<T>::type(); }
    static std::string expected() { return Argument<T>::expected() + " or None"; }
    static bool has_type(py::handle given) { return given.is_none() || Argument<T>::has_type(given); }
    static std::optional<T> load(py::handle given, const char* name, bool output) {
        if (given.is_none()) return std::nullopt;
        return Argument<T>::load(given, name, output, " or None");
    }
};

template <typename F>
struct Signature : Signature<decltype(&F::operator())> {};
template <typename R, typename C, typename... A>
struct Signature<R (C::*)(A...) const> {
    using Arguments = std::tuple<A...>;
};
template <typename R, typename... A>
struct Signature<R (*)(A...)> {
    using Arguments = std::tuple<A...>;
};

template <std::size_t N>
struct Door {
    using Objects = std::array<py::handle, N>;
    std::array<const char*, N> names;

    template <typename F, std::size_t... I>
    auto call(const F& function, const Objects& given, std::index_sequence<I...>) const {
        using Arguments = typename Signature<F>::Arguments;
        std::tuple values{load<std::tuple_element_t<I, Arguments>>(given[I], names[I])...};  // braces: in this order
        return function(std::get<I>(values)...);
    }

    // 0 where `given` fits both types, else which of the two it has.
    template <typename A, typename B>
    static int choice(py::handle given, const char* name) {
        if constexpr (!std::is_same_v<A, B>) {
            const bool first = Argument<A>::has_type(given), second = Argument<B>::has_type(given);
            if (!first && !second)
                throw py::type_error(std::string(name) + " is " + described(given) + ", expected " +
                                     Argument<A>::expected() + ", or of " + Argument<B>::type());
            if (first != second) return first ? 1 : 2;
        }
        return 0;
    }

    template <typename F, typename G, std::size_t... I>
    int chosen(const Objects& given, std::index_sequence<I...>) const {
        int result = 0;
        ((result = result ? result
                          : choice<std::decay_t<std::tuple_element_t<I, typename Signature<F>::Arguments>>,
                                   std::decay_t<std::tuple_element_t<I, typename Signature<G>::Arguments>>>(given[I],
                                                                                                           names[I])),
         ...);
        return result;
    }

  private:
    template <typename A>
    static auto load(py::handle given, const char* name) {
        constexpr bool output = std::is_lvalue_reference_v<A> && !std::is_const_v<std::remove_reference_t<A>>;
        return Argument<std::decay_t<A>>::load(given, name, output);
    }
};

template <std::size_t>
using Object = const py::object&;

template <std::size_t N, std::size_t... I, typename F, typename... G>
void define_door(py::module_& m, const char* name, const char* const (&names)[N], const char* doc,
                 std::index_sequence<I...> all, F first, G... second) {
    const Door<N> door{{names[I]...}};
    m.def(
        name,
        [door, all, first, second...](Object<I>... given) {
            const typename Door<N>::Objects objects{given...};
            if constexpr (sizeof...(G) == 1) {
                if (door.template chosen<F, G...>(objects, all) == 2) return door.call(second..., objects, all);
            }
            return door.call(first, objects, all);
        },
        py::arg(names[I])..., doc);
}

// Binds `name` to a function with these arguments, or to two overloads that differ in the types of their arrays.
template <std::size_t N, typename F, typename... G>
void define(py::module_& m, const char* name, const char* const (&arguments)[N], const char* doc, F first,
            G... second) {
    static_assert(sizeof...(G) <= 1, "at most two overloads");
    static_assert(std::tuple_size_v<typename Signature<F>::Arguments> == N, "a name for every argument");
    define_door(m, name, arguments, doc, std::make_index_sequence<N>{}, first, second...);
}

}  // namespace fastseq
