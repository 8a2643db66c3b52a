#include "adam_rows.h"

#include <vector>

#include "bindings.h"

namespace fastseq {

namespace {

// The row of grad that belongs to each row of the table, or -1.
std::vector<int32_t> slots_of(const Array<int64_t>& rows, int64_t table_rows) {
    check_number("rows.size", rows.shape(0), 0, INT32_MAX);
    check_ids(rows, "rows", table_rows);
    std::vector<int32_t> slots(table_rows, -1);
    const int64_t* row = rows.data();
    for (int32_t i = 0; i < rows.shape(0); ++i) {
        if (slots[row[i]] >= 0) throw py::value_error("rows holds " + std::to_string(row[i]) + " twice");
        slots[row[i]] = i;
    }
    return slots;
}

template <typename T>
void adam_rows(Array<T>& weight, Array<T>& exp_avg, Array<T>& exp_avg_sq,
               Array<int64_t>& last_step, const Array<int64_t>& rows, const Array<T>& grad, int64_t step, double lr,
               double beta1, double beta2, double eps, bool lazy, Threads threads) {
    check_shape(weight, "weight", {-1, -1});
    AdamTable<T> table;
    table.rows = weight.shape(0), table.width = weight.shape(1);
    check_shapes({table.rows, table.width}, exp_avg, "exp_avg", exp_avg_sq, "exp_avg_sq");
    check_shape(last_step, "last_step", {table.rows});
    check_shape(rows, "rows", {-1});
    check_shape(grad, "grad", {rows.shape(0), table.width});
    check_number("step", step, 1);
    check_ids(last_step, "last_step", step);
    const std::vector<int32_t> slots = slots_of(rows, table.rows);
    table.weight = weight.mutable_data(), table.exp_avg = exp_avg.mutable_data();
    table.exp_avg_sq = exp_avg_sq.mutable_data(), table.last_step = last_step.mutable_data();
    table.step = step, table.lr = lr, table.beta1 = beta1, table.beta2 = beta2, table.eps = eps;
    const int64_t *row = rows.data(), count = rows.shape(0);
    const T* g = grad.data();
    py::gil_scoped_release release;
    if (lazy)
        adam_lazy(table, row, count, g, threads);
    else
        adam_dense(table, slots.data(), g, threads);
}

}  // namespace

void bind_adam_rows(py::module_& m) {
    define(m, "adam_rows",
           {"weight", "exp_avg", "exp_avg_sq", "last_step", "rows", "grad", "step", "lr", "beta1", "beta2", "eps",
            "lazy", "threads"},
           "one Adam step in place, dense-equal or lazy",
           &adam_rows<float>, &adam_rows<double>);
}

}  // namespace fastseq
