#include "sampled_loss.h"

#include <vector>

#include "loss_inputs.h"

namespace fastseq {

namespace {

template <typename T>
void loss_of(const Array<T>& h, const Array<T>& item_weight, const Array<int64_t>& targets,
             const Array<int64_t>& negatives, const std::string& loss, const OptionalArray<T>& log_q,
             double beta, Array<T>& losses, Array<T>& grad_h, Array<T>& grad_scores, Threads threads) {
    LossInputs<T> in = loss_inputs(item_weight, targets, negatives, loss, log_q, beta);
    check_shape(h, "h", {in.rows, in.width});
    check_shape(losses, "losses", {in.rows});
    check_shape(grad_h, "grad_h", {in.rows, in.width});
    check_shape(grad_scores, "grad_scores", {in.rows, in.count + 1});
    in.h = h.data();
    T *out = losses.mutable_data(), *grad = grad_h.mutable_data(), *scores = grad_scores.mutable_data();
    py::gil_scoped_release release;
    sampled_loss(in, out, grad, scores, threads);
}

// Counting sort of the entries by id: stable, so that each id's sum runs in the order of the entries.
template <typename T>
void item_gradient(const Array<int64_t>& ids, const Array<T>& coefficients, const Array<T>& source,
                   int64_t padding_idx, Array<T>& out, Threads threads) {
    check_shape(ids, "ids", {-1, -1});
    check_shape(coefficients, "coefficients", {ids.shape(0), ids.shape(1)});
    check_shape(source, "source", {ids.shape(0), -1});
    check_shape(out, "out", {-1, source.shape(1)});
    const int64_t rows = ids.shape(0), columns = ids.shape(1), items = out.shape(0);
    check_number("ids.shape[0]", rows, 0, INT32_MAX);
    const int64_t* id = ids.data();
    check_ids(ids, "ids", items);
    const T *coefficient = coefficients.data(), *rows_of = source.data();
    T* sums = out.mutable_data();
    if (out.size() == 0) return;  // however many rows it has
    py::gil_scoped_release release;
    std::vector<int64_t> next(items + 1, 0), starts(items + 1, 0);
    for (int64_t e = 0; e < rows * columns; ++e)
        if (id[e] != padding_idx) ++starts[id[e] + 1];
    for (int64_t i = 0; i < items; ++i) {
        starts[i + 1] += starts[i];
        next[i] = starts[i];
    }
    std::vector<int32_t> order(rows * columns);
    std::vector<T> sorted(rows * columns);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) {
            const int64_t e = i * columns + j;
            if (id[e] == padding_idx) continue;
            const int64_t entry = next[id[e]]++;
            order[entry] = static_cast<int32_t>(i);
            sorted[entry] = coefficient[e];
        }
    sum_by_id(starts.data(), order.data(), sorted.data(), rows_of, items, out.shape(1), sums, threads);
}

}  // namespace

void bind_sampled_loss(py::module_& m) {
    define(m, "sampled_loss",
           {"h", "item_weight", "targets", "negatives", "loss", "log_q", "beta", "losses", "grad_h", "grad_scores",
            "threads"},
           "writes losses [N], grad_h [N, d] and grad_scores [N, 1 + K]",
           &loss_of<float>, &loss_of<double>);
    define(m, "item_gradient", {"ids", "coefficients", "source", "padding_idx", "out", "threads"},
           "out[id] = sum of coefficients[i, j] * source[i] over ids[i, j] == id != padding_idx",
           &item_gradient<float>, &item_gradient<double>);
}

}  // namespace fastseq
