#include "gru_sampled_loss.h"

#include "loss_inputs.h"

namespace fastseq {
namespace {

template <typename T>
void gru_sampled_loss_of(const Array<T>& h, const OptionalArray<int64_t>& rows, const Array<T>& weight,
                         const Array<T>& bias, const Array<T>& item_weight, const Array<int64_t>& targets,
                         const Array<int64_t>& negatives, const std::string& loss, const OptionalArray<T>& log_q,
                         double beta, int64_t ignored, double scale, Array<T>& losses, Array<T>& y,
                         Array<T>& d_scores, Array<T>& d_h, Array<T>& d_weight, Array<T>& d_bias,
                         Array<T>& d_negatives, Threads threads) {
    check_number("ignored", ignored, INT32_MIN, -1);
    DenseLoss<T> a{};
    a.loss = loss_inputs(item_weight, targets, negatives, loss, log_q, beta, ignored);
    const int64_t count = a.loss.rows, width = a.loss.width;
    check_shape(negatives, "negatives", {-1});
    check_shape(h, "h", {rows ? -1 : count, -1});
    a.hidden = h.shape(1);
    check_shape(weight, "weight", {width, a.hidden});
    check_shapes({width}, bias, "bias", d_bias, "d_bias");
    if (rows) check_ids(*rows, "rows", h.shape(0));
    a.rows = optional_data(rows, "rows", {count});
    check_shape(losses, "losses", {count});
    check_shape(y, "y", {count, width});
    check_shape(d_scores, "d_scores", {count, 1});
    check_shape(d_h, "d_h", {count, a.hidden});
    check_shape(d_weight, "d_weight", {width, a.hidden});
    check_shape(d_negatives, "d_negatives", {a.loss.count, width});
    a.h = h.data(), a.weight = weight.data(), a.bias = bias.data();
    a.ignored = ignored, a.scale = static_cast<T>(scale), a.threads = threads;
    a.losses = losses.mutable_data(), a.y = y.mutable_data(), a.d_scores = d_scores.mutable_data();
    a.d_h = d_h.mutable_data(), a.d_weight = d_weight.mutable_data(), a.d_bias = d_bias.mutable_data(),
    a.d_negatives = d_negatives.mutable_data();
    py::gil_scoped_release release;
    gru_sampled_loss(a);
}

}  // namespace

void bind_gru_sampled_loss(py::module_& m) {
    define(m, "gru_sampled_loss",
           {"h", "rows", "weight", "bias", "item_weight", "targets", "negatives", "loss", "log_q", "beta", "ignored",
            "scale", "losses", "y", "d_scores", "d_h", "d_weight", "d_bias", "d_negatives", "threads"},
           "writes losses [N] times scale, and the gradients of their sum",
           &gru_sampled_loss_of<float>, &gru_sampled_loss_of<double>);
}

}  // namespace fastseq
