// The arguments that every function with a sampled loss has.
#pragma once

#include <string>

#include "bindings.h"
#include "sampled_loss.h"

namespace fastseq {

inline SampledLoss kind_of(const std::string& loss) {
    if (loss == "bpr") return SampledLoss::bpr;
    if (loss == "bce" || loss == "gbce") return SampledLoss::bce;
    if (loss == "sampled_softmax") return SampledLoss::sampled_softmax;
    throw py::value_error("loss is '" + loss + "', which has no kernel");
}

// The batch of targets, checked, without its hidden states; a target may be `ignored`.
template <typename T>
LossInputs<T> loss_inputs(const Array<T>& item_weight, const Array<int64_t>& targets, const Array<int64_t>& negatives,
                          const std::string& loss, const OptionalArray<T>& log_q, double beta, int64_t ignored = 0) {
    LossInputs<T> in{};
    check_shape(targets, "targets", {-1});
    check_shape(item_weight, "item_weight", {-1, -1});
    in.rows = targets.shape(0), in.width = item_weight.shape(1);
    in.shared = negatives.ndim() == 1;
    if (!in.shared) check_shape(negatives, "negatives", {in.rows, -1});
    in.count = negatives.shape(in.shared ? 0 : 1);
    in.table = item_weight.data(), in.targets = targets.data(), in.negatives = negatives.data();
    for (int64_t i = 0; i < in.rows; ++i)
        if (ignored == 0 || in.targets[i] != ignored) check_range("targets", i, in.targets[i], item_weight.shape(0));
    check_ids(negatives, "negatives", item_weight.shape(0));
    in.kind = kind_of(loss);
    if (in.kind == SampledLoss::sampled_softmax) {
        if (!log_q) throw py::value_error("log_q is None, but the loss is sampled_softmax");
        if (in.shared)
            check_shape(*log_q, "log_q", {in.count});
        else
            check_shape(*log_q, "log_q", {in.rows, in.count});
        in.log_q = log_q->data();
    }
    in.beta = loss == "gbce" ? beta : 1.0;
    return in;
}

}  // namespace fastseq
