#include "sampled_loss.h"

#include <limits>
#include <optional>
#include <vector>

#include "bindings.h"

namespace fastseq {

namespace {

// Raises IndexError that names the first id outside [0, items) by its argument and place.
void check_ids(const int64_t* ids, int64_t rows, int64_t columns, int64_t items, const char* name) {
    for (int64_t e = 0; e < rows * columns; ++e) {
        if (ids[e] >= 0 && ids[e] < items) continue;
        std::string place = std::to_string(e / columns);
        if (columns > 1) place += ", " + std::to_string(e % columns);
        throw py::index_error(std::string(name) + "[" + place + "] is " + std::to_string(ids[e]) +
                              ", expected an id from 0 to " + std::to_string(items - 1) + ": item_weight has " +
                              std::to_string(items) + " rows");
    }
}

SampledLoss kind_of(const std::string& loss) {
    if (loss == "bpr") return SampledLoss::bpr;
    if (loss == "bce" || loss == "gbce") return SampledLoss::bce;
    if (loss == "sampled_softmax") return SampledLoss::sampled_softmax;
    throw py::value_error("loss is '" + loss + "', expected bpr, bce, gbce or sampled_softmax");
}

template <typename T, typename Kernel>
void loss_of(Kernel kernel, const Array<T>& h, const Array<T>& item_weight, const Array<int64_t>& targets,
             const Array<int64_t>& negatives, const std::string& loss, const OptionalArray<T>& log_q,
             double beta, Array<T>& losses, Array<T>& grad_h, Array<T>& grad_scores, Threads threads) {
    LossInputs<T> in;
    check_shape(h, "h", {-1, -1});
    in.rows = h.shape(0), in.width = h.shape(1);
    check_shape(item_weight, "item_weight", {-1, in.width});
    check_shape(targets, "targets", {in.rows});
    in.shared = negatives.ndim() == 1;
    if (!in.shared) check_shape(negatives, "negatives", {in.rows, -1});
    in.count = negatives.shape(in.shared ? 0 : 1);
    check_shape(losses, "losses", {in.rows});
    check_shape(grad_h, "grad_h", {in.rows, in.width});
    check_shape(grad_scores, "grad_scores", {in.rows, in.count + 1});
    check_ids(targets.data(), in.rows, 1, item_weight.shape(0), "targets");
    if (in.shared) check_ids(negatives.data(), in.count, 1, item_weight.shape(0), "negatives");
    else check_ids(negatives.data(), in.rows, in.count, item_weight.shape(0), "negatives");
    in.kind = kind_of(loss);
    in.log_q = nullptr;
    if (in.kind == SampledLoss::sampled_softmax) {
        if (!log_q) throw py::value_error("log_q is None, expected an array: the loss is sampled_softmax");
        if (in.shared) check_shape(*log_q, "log_q", {in.count});
        else check_shape(*log_q, "log_q", {in.rows, in.count});
        in.log_q = log_q->data();
    }
    in.beta = loss == "gbce" ? beta : 1.0;
    in.h = h.data(), in.table = item_weight.data(), in.targets = targets.data(), in.negatives = negatives.data();
    T *out = losses.mutable_data(), *grad = grad_h.mutable_data(), *scores = grad_scores.mutable_data();
    py::gil_scoped_release release;
    kernel(in, out, grad, scores, threads);
}

// Counting sort of the entries by id: stable, so that each id's sum runs in the order of the entries.
template <typename T, typename Kernel>
void item_gradient(Kernel kernel, const Array<int64_t>& ids, const Array<T>& coefficients, const Array<T>& source,
                   int64_t padding_idx, Array<T>& out, Threads threads) {
    check_shape(ids, "ids", {-1, -1});
    check_shape(coefficients, "coefficients", {ids.shape(0), ids.shape(1)});
    check_shape(source, "source", {ids.shape(0), -1});
    check_shape(out, "out", {-1, source.shape(1)});
    const int64_t rows = ids.shape(0), columns = ids.shape(1), items = out.shape(0);
    if (rows > std::numeric_limits<int32_t>::max())
        throw py::value_error("ids has " + std::to_string(rows) + " rows, at most 2147483647 are supported");
    const int64_t* id = ids.data();
    check_ids(id, rows, columns, items, "ids");
    if (out.size() == 0) return;  // however many rows it has
    const T *coefficient = coefficients.data(), *rows_of = source.data();
    T* sums = out.mutable_data();
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
            const int64_t place = next[id[e]]++;
            order[place] = static_cast<int32_t>(i);
            sorted[place] = coefficient[e];
        }
    kernel(starts.data(), order.data(), sorted.data(), rows_of, items, out.shape(1), sums, threads);
}

template <typename T, typename Kernel>
auto loss_door(Kernel kernel) {
    return [kernel](const Array<T>& h, const Array<T>& item_weight, const Array<int64_t>& targets,
                    const Array<int64_t>& negatives, const std::string& loss, const OptionalArray<T>& log_q,
                    double beta, Array<T>& losses, Array<T>& grad_h, Array<T>& grad_scores, Threads threads) {
        loss_of<T>(kernel, h, item_weight, targets, negatives, loss, log_q, beta, losses, grad_h, grad_scores, threads);
    };
}

template <typename T, typename Kernel>
auto item_gradient_door(Kernel kernel) {
    return [kernel](const Array<int64_t>& ids, const Array<T>& coefficients, const Array<T>& source,
                    int64_t padding_idx, Array<T>& out, Threads threads) {
        item_gradient<T>(kernel, ids, coefficients, source, padding_idx, out, threads);
    };
}

}  // namespace

void bind_sampled_loss(py::module_& m) {
    define(m, "check_ids", {"ids", "items", "name"}, "IndexError unless 0 <= ids < items",
           [](const Array<int64_t>& ids, int64_t items, const std::string& name) {
               if (items < 0) throw py::value_error("items is " + std::to_string(items) + ", expected at least 0");
               check_shape(ids, name.c_str(), {-1});
               const int64_t *id = ids.data(), count = ids.shape(0);
               py::gil_scoped_release release;
               check_ids(id, count, 1, items, name.c_str());
           });
    define(m, "sampled_loss",
           {"h", "item_weight", "targets", "negatives", "loss", "log_q", "beta", "losses", "grad_h", "grad_scores",
            "threads"},
           "writes losses [N], grad_h [N, d] and grad_scores [N, 1 + K]",
           loss_door<float>([](auto&&... a) { sampled_loss_f32(a...); }),
           loss_door<double>([](auto&&... a) { sampled_loss_f64(a...); }));
    define(m, "item_gradient", {"ids", "coefficients", "source", "padding_idx", "out", "threads"},
           "out[id] = sum of coefficients[i, j] * source[i] over ids[i, j] == id != padding_idx",
           item_gradient_door<float>([](auto&&... a) { sum_by_id_f32(a...); }),
           item_gradient_door<double>([](auto&&... a) { sum_by_id_f64(a...); }));
}

}  // namespace fastseq
