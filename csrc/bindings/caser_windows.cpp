#include "caser_windows.h"

#include <algorithm>
#include <vector>

#include "bindings.h"

namespace fastseq {

namespace {

constexpr int64_t kChunkRows = 256;  // rows convolved at a time: they stay in the cache between two filters

constexpr int64_t kMostLength = 1 << 14;

// Groups the targets by sequence and the sequences into chunks; holds the memory of the plan.
class Planner {
  public:
    Planner(const Array<int32_t>& offsets, const Array<int64_t>& sequences, const Array<int64_t>& stops,
            int64_t n_rows, int64_t max_len) {
        check_offsets(offsets, n_rows);
        check_shape(sequences, "sequences", {-1});
        check_shape(stops, "stops", {sequences.shape(0)});
        const int64_t size = offsets.shape(0) - 1, count = sequences.shape(0);
        const int32_t* start = offsets.data();
        const int64_t *sequence = sequences.data(), *stop = stops.data();
        begin_.assign(size + 1, 0);
        first_.resize(size);
        last_.resize(size);
        order_.resize(count);
        for (int64_t s = 0; s < size; ++s) first_[s] = last_[s] = start[s];
        for (int64_t t = 0; t < count; ++t) {
            const int64_t s = sequence[t];
            check_range("sequences", t, s, size);
            check_range("stops", t, stop[t], start[s + 1] + int64_t(1), start[s]);
            if (begin_[s + 1]++ == 0) first_[s] = last_[s] = stop[t];
            first_[s] = std::min(first_[s], stop[t]);
            last_[s] = std::max(last_[s], stop[t]);
        }
        for (int64_t s = 0; s < size; ++s) begin_[s + 1] += begin_[s];
        std::vector<int64_t> next(begin_.begin(), begin_.end() - 1);
        for (int64_t t = 0; t < count; ++t) order_[next[sequence[t]]++] = t;

        int64_t rows = 0, most = 0;
        chunks_.push_back(0);
        for (int64_t s = 0; s < size; ++s) {
            const int64_t here = last_[s] - std::max<int64_t>(start[s], first_[s] - max_len);
            if (s > chunks_.back() && (rows + here > kChunkRows || s - chunks_.back() >= kChunkRows)) {
                chunks_.push_back(s);
                rows = 0;
            }
            rows += here;
            most = std::max(most, rows);
        }
        if (size > 0) chunks_.push_back(size);
        plan_ = {size,           count,         static_cast<int64_t>(chunks_.size()) - 1,
                 start,          stop,          order_.data(),
                 begin_.data(),  first_.data(), last_.data(),
                 chunks_.data(), most};
    }

    const CaserPlan& plan() const { return plan_; }

  private:
    std::vector<int64_t> begin_, first_, last_, order_, chunks_;
    CaserPlan plan_{};
};

template <typename T>
CaserInputs<T> inputs(const Array<T>& x, const Array<T>& weight_h, const Array<T>& bias_h, const Array<T>& weight_v,
                      const Array<T>& bias_v, const Array<T>& padding_row) {
    check_shape(x, "x", {-1, -1});
    check_shape(bias_h, "bias_h", {-1, -1});
    const int64_t d = x.shape(1), max_len = bias_h.shape(0), n_h = bias_h.shape(1);
    check_number("bias_h.shape[0]", max_len, 1, kMostLength);
    check_shape(weight_h, "weight_h", {max_len * (max_len + 1) / 2, n_h, d});
    check_shape(weight_v, "weight_v", {-1, max_len});
    check_shape(bias_v, "bias_v", {weight_v.shape(0)});
    // The kernels count the filters of all heights in 31 bits.
    check_number("x.shape[1]", d, 0, INT32_MAX / kMostLength);
    check_number("bias_h.shape[1]", n_h, 0, INT32_MAX / max_len);
    check_number("weight_v.shape[0]", weight_v.shape(0), 0, INT32_MAX / max_len);
    check_shape(padding_row, "padding_row", {d});
    return {static_cast<int>(max_len),
            static_cast<int>(d),
            static_cast<int>(n_h),
            static_cast<int>(weight_v.shape(0)),
            x.data(),
            weight_h.data(),
            bias_h.data(),
            weight_v.data(),
            bias_v.data(),
            padding_row.data()};
}

template <typename T>
void forward(const Array<T>& x, const Array<int32_t>& offsets, const Array<int64_t>& sequences,
             const Array<int64_t>& stops, const Array<T>& weight_h, const Array<T>& bias_h, const Array<T>& weight_v,
             const Array<T>& bias_v, const Array<T>& padding_row, Array<T>& out, Array<int32_t>& position,
             Threads threads) {
    const CaserInputs<T> in = inputs(x, weight_h, bias_h, weight_v, bias_v, padding_row);
    const Planner planner(offsets, sequences, stops, x.shape(0), in.max_len);
    const int64_t lanes = static_cast<int64_t>(in.max_len) * in.n_h;
    check_shape(out, "out", {stops.shape(0), static_cast<int64_t>(in.n_v) * in.d + lanes});
    check_shape(position, "position", {stops.shape(0), lanes});
    T* to = out.mutable_data();
    int32_t* at = position.mutable_data();
    py::gil_scoped_release release;
    caser_windows(planner.plan(), in, to, at, threads);
}

template <typename T>
void backward(const Array<T>& grad, const Array<T>& x, const Array<int32_t>& offsets,
              const Array<int64_t>& sequences, const Array<int64_t>& stops, const Array<T>& weight_h,
              const Array<T>& bias_h, const Array<T>& weight_v, const Array<T>& bias_v, const Array<T>& padding_row,
              const Array<int32_t>& position, Array<T>& x_grad, Array<T>& weight_h_grad, Array<T>& bias_h_grad,
              Array<T>& weight_v_grad, Array<T>& bias_v_grad, Array<T>& padding_row_grad, Threads threads) {
    const CaserInputs<T> in = inputs(x, weight_h, bias_h, weight_v, bias_v, padding_row);
    const Planner planner(offsets, sequences, stops, x.shape(0), in.max_len);
    const int64_t n = stops.shape(0), d = in.d, max_len = in.max_len, n_h = in.n_h, n_v = in.n_v;
    check_shape(grad, "grad", {n, n_v * d + max_len * n_h});
    check_shape(position, "position", {n, max_len * n_h});
    const int32_t* at = position.data();
    check_ids(position, "position", max_len, -1);
    check_shape(x_grad, "x_grad", {x.shape(0), d});
    check_shape(weight_h_grad, "weight_h_grad", {max_len * (max_len + 1) / 2, n_h, d});
    check_shape(bias_h_grad, "bias_h_grad", {max_len, n_h});
    check_shape(weight_v_grad, "weight_v_grad", {n_v, max_len});
    check_shape(bias_v_grad, "bias_v_grad", {n_v});
    check_shape(padding_row_grad, "padding_row_grad", {d});
    const CaserGradients<T> result{x_grad.mutable_data(),        weight_h_grad.mutable_data(),
                                   bias_h_grad.mutable_data(),   weight_v_grad.mutable_data(),
                                   bias_v_grad.mutable_data(),   padding_row_grad.mutable_data()};
    const T* from = grad.data();
    py::gil_scoped_release release;
    caser_windows_backward(planner.plan(), in, from, at, result, threads);
}

}  // namespace

void bind_caser_windows(py::module_& m) {
    define(m, "caser_windows",
           {"x", "offsets", "sequences", "stops", "weight_h", "bias_h", "weight_v", "bias_v", "padding_row", "out",
            "position", "threads"},
           "Pooled convolutions of every history, and the positions of the maxima",
           &forward<float>, &forward<double>);
    define(m, "caser_windows_backward",
           {"grad", "x", "offsets", "sequences", "stops", "weight_h", "bias_h", "weight_v", "bias_v", "padding_row",
            "position", "x_grad", "weight_h_grad", "bias_h_grad", "weight_v_grad", "bias_v_grad", "padding_row_grad",
            "threads"},
           "Gradients, added to arrays that hold zeros",
           &backward<float>, &backward<double>);
}

}  // namespace fastseq
