// Adam on the rows of an embedding table: one read and one write of the moments and weights it has to move.
#include "adam_rows.h"

#include <cmath>

namespace fastseq::FASTSEQ_ISA {
namespace {

template <typename T>
class Update {
  public:
    explicit Update(const AdamTable<T>& table)
        : table_(table),
          rate_(static_cast<T>(table.lr / (1.0 - pow(table.beta1, static_cast<double>(table.step))))),
          root_(static_cast<T>(1.0 / sqrt(1.0 - pow(table.beta2, static_cast<double>(table.step))))) {}

    // One row; grad is null where it has none.
    inline void row(int64_t row, const T* grad) const {
        const double since = static_cast<double>(table_.step - table_.last_step[row]);
        const bool next = since == 1.0;
        const T keep1 = static_cast<T>(next ? table_.beta1 : pow(table_.beta1, since));
        const T keep2 = static_cast<T>(next ? table_.beta2 : pow(table_.beta2, since));
        const T add1 = static_cast<T>(1.0 - table_.beta1), add2 = static_cast<T>(1.0 - table_.beta2);
        const T eps = static_cast<T>(table_.eps), rate = rate_, root = root_;
        T* w = table_.weight + row * table_.width;
        T* m = table_.exp_avg + row * table_.width;
        T* v = table_.exp_avg_sq + row * table_.width;
        const int64_t width = table_.width;
        if (grad == nullptr) {
#pragma omp simd
            for (int64_t c = 0; c < width; ++c) {
                m[c] *= keep1;
                v[c] *= keep2;
                w[c] -= rate * m[c] / (sqrt(v[c]) * root + eps);
            }
        } else {
#pragma omp simd
            for (int64_t c = 0; c < width; ++c) {
                m[c] = keep1 * m[c] + add1 * grad[c];
                v[c] = keep2 * v[c] + add2 * grad[c] * grad[c];
                w[c] -= rate * m[c] / (sqrt(v[c]) * root + eps);
            }
        }
        table_.last_step[row] = table_.step;
    }

  private:
    static float sqrt(float x) { return __builtin_sqrtf(x); }
    static double sqrt(double x) { return __builtin_sqrt(x); }
    static double pow(double x, double y) { return __builtin_pow(x, y); }

    const AdamTable<T>& table_;
    T rate_, root_;
};

}  // namespace

template <typename T>
void adam_dense(const AdamTable<T>& table, const int32_t* slots, const T* grad, int threads) {
    const Update<T> update(table);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 256)
    for (int64_t row = 0; row < table.rows; ++row) {
        if (slots[row] >= 0)
            update.row(row, grad + slots[row] * table.width);
        else if (table.last_step[row] > 0)  // else its moments are zero, and so is its update
            update.row(row, nullptr);
    }
}

template <typename T>
void adam_lazy(const AdamTable<T>& table, const int64_t* rows, int64_t count, const T* grad, int threads) {
    const Update<T> update(table);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; ++i) update.row(rows[i], grad + i * table.width);
}

FASTSEQ_INSTANTIATE(adam_dense)
FASTSEQ_INSTANTIATE(adam_lazy)

}  // namespace fastseq::FASTSEQ_ISA
