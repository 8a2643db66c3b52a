#include "gru.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "bindings.h"

namespace fastseq {

namespace {

// The non-empty sequences, longest first.
struct ByLength {
    std::vector<int32_t> starts, lengths;

    explicit ByLength(const Array<int32_t>& offsets) {
        const int32_t* o = offsets.data();
        std::vector<int32_t> order;
        for (int32_t s = 0; s + 1 < offsets.shape(0); ++s)
            if (o[s + 1] > o[s]) order.push_back(s);
        std::stable_sort(order.begin(), order.end(),
                         [o](int32_t a, int32_t b) { return o[a + 1] - o[a] > o[b + 1] - o[b]; });
        for (int32_t s : order) {
            starts.push_back(o[s]);
            lengths.push_back(o[s + 1] - o[s]);
        }
    }
    int64_t count() const { return static_cast<int64_t>(starts.size()); }
};

template <typename T>
void forward(const Array<T>& x_gates, const Array<T>& weight_hh,
             const OptionalArray<T>& bias_hh, const Array<int32_t>& offsets, int64_t max_len, Array<T>& h,
             Array<T>& saved, Threads threads) {
    check_shape(h, "h", {-1, -1});
    const int64_t rows = h.shape(0), hidden = h.shape(1);
    check_shape(x_gates, "x_gates", {rows, 3 * hidden});
    check_shape(weight_hh, "weight_hh", {3 * hidden, hidden});
    check_offsets(offsets, rows, max_len);
    check_shape(saved, "saved", {rows, 4 * hidden});
    const ByLength order(offsets);
    const T *x = x_gates.data(), *weight = weight_hh.data(), *bias = optional_data(bias_hh, "bias_hh", {3 * hidden});
    T *state = h.mutable_data(), *gates = saved.mutable_data();
    py::gil_scoped_release release;
    gru(x, weight, bias, order.starts.data(), order.lengths.data(), order.count(), hidden, state, gates, threads);
}

template <typename T>
void backward(const Array<T>& grad, const Array<T>& weight_hh, const Array<int32_t>& offsets,
              const Array<T>& h, const Array<T>& saved, Array<T>& grad_x, Array<T>& grad_hidden, Array<T>& previous,
              Array<T>& carry, Threads threads) {
    check_shape(h, "h", {-1, -1});
    const int64_t rows = h.shape(0), hidden = h.shape(1);
    check_shape(grad, "grad", {rows, hidden});
    check_shape(weight_hh, "weight_hh", {3 * hidden, hidden});
    check_offsets(offsets, rows);
    check_shape(saved, "saved", {rows, 4 * hidden});
    check_shapes({rows, 3 * hidden}, grad_x, "grad_x", grad_hidden, "grad_hidden");
    check_shape(previous, "previous", {rows, hidden});
    check_shape(carry, "carry", {offsets.shape(0) - 1, hidden});
    const ByLength order(offsets);
    const T *g = grad.data(), *weight = weight_hh.data(), *state = h.data(), *gates = saved.data();
    T *gx = grad_x.mutable_data(), *gh = grad_hidden.mutable_data(), *before = previous.mutable_data(),
      *scratch = carry.mutable_data();
    py::gil_scoped_release release;
    gru_backward(g, weight, state, gates, order.starts.data(), order.lengths.data(), order.count(), hidden, gx, gh,
                 before, scratch, threads);
}

}  // namespace

void bind_gru(py::module_& m) {
    define(m, "gru", {"x_gates", "weight_hh", "bias_hh", "offsets", "max_len", "h", "saved", "threads"},
           "GRU over jagged sequences: writes h [T, H] and saved [T, 4H] = (r, z, n, W_hn h + b_hn)",
           &forward<float>, &forward<double>);
    define(m, "gru_backward",
           {"grad", "weight_hh", "offsets", "h", "saved", "grad_x", "grad_hidden", "previous", "carry", "threads"},
           "writes grad_x, grad_hidden [T, 3H] and previous [T, H]; carry [B, H] is scratch",
           &backward<float>, &backward<double>);
}

}  // namespace fastseq
