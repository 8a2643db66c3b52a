#include "adam_rows.h"

#include "bindings.h"

namespace fastseq {

namespace {

template <typename T>
void update(Array<T>& weight, Array<T>& exp_avg, Array<T>& exp_avg_sq, Array<int32_t>& last_step,
            const Array<double>& history, const Array<int64_t>& clock, const OptionalArray<int64_t>& rows,
            const OptionalArray<T>& grad, double beta1, double beta2, double eps, Threads threads) {
    check_shape(weight, "weight", {-1, -1});
    AdamTable<T> table;
    table.rows = weight.shape(0), table.width = weight.shape(1);
    check_shapes({table.rows, table.width}, exp_avg, "exp_avg", exp_avg_sq, "exp_avg_sq");
    check_shape(last_step, "last_step", {table.rows});
    check_shape(history, "history", {-1, 8});
    check_shape(clock, "clock", {2});
    const int64_t *row = optional_data(rows, "rows", {-1}), count = rows ? rows->shape(0) : table.rows;
    const T* g = optional_data(grad, "grad", {count, table.width});
    const int32_t* last = last_step.data();
    const int64_t least = g == nullptr ? 0 : 1;
    table.step = clock.data()[0], table.offset = clock.data()[1];
    check_number("clock[0]", table.step, least, INT32_MAX);
    check_number("clock[1]", table.offset, -table.step, history.shape(0) - 1 - table.step);
    if (row != nullptr) check_ids(*rows, "rows", table.rows);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t r = row == nullptr ? i : row[i];
        if (row != nullptr && i > 0 && row[i - 1] >= r) throw py::value_error("rows must ascend");
        if (last[r] != 0) check_range("last_step", r, last[r], table.step - least + 1, std::max<int64_t>(1, -table.offset));
    }
    table.weight = weight.mutable_data(), table.exp_avg = exp_avg.mutable_data();
    table.exp_avg_sq = exp_avg_sq.mutable_data(), table.last_step = last_step.mutable_data();
    table.history = history.data(), table.beta1 = beta1, table.beta2 = beta2, table.eps = eps;
    py::gil_scoped_release release;
    adam_rows(table, row, count, g, threads);
}

}  // namespace

void bind_adam_rows(py::module_& m) {
    define(m, "adam_rows",
           {"weight", "exp_avg", "exp_avg_sq", "last_step", "history", "clock", "rows", "grad", "beta1", "beta2", "eps",
            "threads"},
           "brings rows up to date and takes a step of Adam with their gradients, in place",
           &update<float>, &update<double>);
}

}  // namespace fastseq
