#include "delimited.h"

#include <pybind11/stl.h>

#include "bindings.h"

namespace fastseq {
namespace {

// The memory as a numpy array, without a copy.
template <typename T>
py::array_t<T> as_array(GrowingArray<T>& array) {
    const int64_t size = array.size();
    T* data = array.release();
    return py::array_t<T>(size, data, py::capsule(data, [](void* memory) { std::free(memory); }));
}

py::tuple as_ids(IdColumn& column) {
    py::object ids;
    if (column.text()) {
        py::list texts(column.distinct());
        for (size_t code = 0; code < column.distinct(); ++code) {
            const std::string_view text = column.string(code);
            texts[code] = py::str(text.data(), text.size());
        }
        ids = texts;
    } else {
        ids = py::array_t<int64_t>(static_cast<py::ssize_t>(column.distinct()), column.integers().data());
    }
    return py::make_tuple(ids, as_array(column.codes));
}

}  // namespace

void bind_delimited(py::module_& m) {
    py::class_<DelimitedReader>(m, "DelimitedReader", "Delimited text, fed in pieces, to factorised columns.")
        .def(py::init([](const std::string& separator, const std::vector<std::string>& names, int user, int item,
                         int time, int64_t line) {
                 const int width = static_cast<int>(names.size());
                 const auto place = [width](const char* name, int value, int least) {
                     least = width > 0 ? least : -1;
                     if (value < least || value >= width)
                         throw py::value_error(std::string(name) + " is " + std::to_string(value) + ", expected " +
                                               std::to_string(least) + " to " + std::to_string(width - 1) +
                                               ", a place in names");
                 };
                 place("user", user, 0);
                 place("item", item, 0);
                 place("time", time, -1);
                 if (line < 0 || line > INT64_MAX / 2)
                     throw py::value_error("line is " + std::to_string(line) + ", expected the number of a line");
                 if (separator.find('\n') != std::string::npos || separator.find('"') != std::string::npos)
                     throw py::value_error("separator contains a newline or a quote, which end lines and fields");
                 return new DelimitedReader(separator, names, user, item, time, line);
             }),
             py::arg("separator"), py::arg("names"), py::arg("user"), py::arg("item"), py::arg("time"), py::arg("line"))
        .def(
            "feed",
            [](DelimitedReader& reader, const py::buffer& piece) {
                const py::buffer_info info = piece.request();
                if (info.ndim != 1 || info.itemsize != 1 || (info.size > 1 && info.strides[0] != 1))
                    throw py::value_error("piece has " + std::to_string(info.ndim) + " dimensions of items of " +
                                          std::to_string(info.itemsize) + " bytes, expected contiguous bytes");
                const std::string_view text(static_cast<const char*>(info.ptr), static_cast<size_t>(info.size));
                py::gil_scoped_release release;
                reader.feed(text);
            },
            py::arg("piece"))
        .def(
            "finish",
            [](DelimitedReader& reader) {
                reader.finish();
                py::object times = py::none();
                py::tuple users = as_ids(reader.users), items = as_ids(reader.items);
                if (reader.has_times())
                    times = reader.times.real() ? py::object(as_array(reader.times.reals()))
                                                : py::object(as_array(reader.times.integers()));
                return py::make_tuple(users, items, times);
            },
            "((user ids, codes), (item ids, codes), times or None); ids in order of first appearance, int64 or list of "
            "str; codes int32. Call once.");
}

}  // namespace fastseq
