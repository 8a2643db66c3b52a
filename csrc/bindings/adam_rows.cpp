#include "adam_rows.h"

#include <limits>
#include <vector>

#include "bindings.h"

namespace fastseq {

namespace {

// The row of grad that belongs to each row of the table, or -1. Raises on a row that is out of range or given twice.
std::vector<int32_t> slots_of(const Array<int64_t>& rows, int64_t table_rows) {
    if (rows.shape(0) > std::numeric_limits<int32_t>::max())
        throw py::value_error("rows has " + std::to_string(rows.shape(0)) + " entries, at most 2147483647 work");
    std::vector<int32_t> slots(table_rows, -1);
    const int64_t* row = rows.data();
    const auto place = [row](int64_t i) { return "rows[" + std::to_string(i) + "] is " + std::to_string(row[i]); };
    for (int64_t i = 0; i < rows.shape(0); ++i) {
        if (row[i] < 0 || row[i] >= table_rows)
            throw py::index_error(place(i) + ", expected 0 to " + std::to_string(table_rows - 1));
        if (slots[row[i]] >= 0)
            throw py::value_error(place(i) + " again, as rows[" + std::to_string(slots[row[i]]) +
                                  "]: sum the gradients of equal rows first");
        slots[row[i]] = static_cast<int32_t>(i);
    }
    return slots;
}

template <typename T, typename Dense, typename Lazy>
void adam_rows(Dense dense, Lazy lazy_kernel, Array<T>& weight, Array<T>& exp_avg, Array<T>& exp_avg_sq,
               Array<int64_t>& last_step, const Array<int64_t>& rows, const Array<T>& grad, int64_t step, double lr,
               double beta1, double beta2, double eps, bool lazy, Threads threads) {
    check_shape(weight, "weight", {-1, -1});
    AdamTable<T> table;
    table.rows = weight.shape(0), table.width = weight.shape(1);
    check_shape(exp_avg, "exp_avg", {table.rows, table.width});
    check_shape(exp_avg_sq, "exp_avg_sq", {table.rows, table.width});
    check_shape(last_step, "last_step", {table.rows});
    check_shape(rows, "rows", {-1});
    check_shape(grad, "grad", {rows.shape(0), table.width});
    if (step < 1) throw py::value_error("step is " + std::to_string(step) + ", expected at least 1");
    const int64_t* last = last_step.data();
    for (int64_t r = 0; r < table.rows; ++r)
        if (last[r] >= step || last[r] < 0)
            throw py::value_error("last_step[" + std::to_string(r) + "] is " + std::to_string(last[r]) +
                                  ", expected 0 to " + std::to_string(step - 1) + ": step is " +
                                  std::to_string(step) + " and steps count up from 1");
    const std::vector<int32_t> slots = slots_of(rows, table.rows);
    table.weight = weight.mutable_data(), table.exp_avg = exp_avg.mutable_data();
    table.exp_avg_sq = exp_avg_sq.mutable_data(), table.last_step = last_step.mutable_data();
    table.step = step, table.lr = lr, table.beta1 = beta1, table.beta2 = beta2, table.eps = eps;
    const int64_t *row = rows.data(), count = rows.shape(0);
    const T* g = grad.data();
    py::gil_scoped_release release;
    if (lazy) lazy_kernel(table, row, count, g, threads);
    else dense(table, slots.data(), g, threads);
}

template <typename T, typename Dense, typename Lazy>
auto door(Dense dense, Lazy lazy_kernel) {
    return [dense, lazy_kernel](Array<T>& weight, Array<T>& exp_avg, Array<T>& exp_avg_sq, Array<int64_t>& last_step,
                                const Array<int64_t>& rows, const Array<T>& grad, int64_t step, double lr,
                                double beta1, double beta2, double eps, bool lazy, Threads threads) {
        adam_rows<T>(dense, lazy_kernel, weight, exp_avg, exp_avg_sq, last_step, rows, grad, step, lr, beta1, beta2,
                     eps, lazy, threads);
    };
}

}  // namespace

void bind_adam_rows(py::module_& m) {
    define(m, "adam_rows",
           {"weight", "exp_avg", "exp_avg_sq", "last_step", "rows", "grad", "step", "lr", "beta1", "beta2", "eps",
            "lazy", "threads"},
           "one Adam step in place, dense-equal or lazy",
           door<float>([](auto&&... a) { adam_dense_f32(a...); }, [](auto&&... a) { adam_lazy_f32(a...); }),
           door<double>([](auto&&... a) { adam_dense_f64(a...); }, [](auto&&... a) { adam_lazy_f64(a...); }));
}

}  // namespace fastseq
