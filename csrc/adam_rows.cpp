// Adam on the rows of an embedding table: the steps that a row has missed at once, then the one that it has a gradient
// in, while it lies in the cache.
#include "adam_rows.h"

#include <algorithm>
#include <cmath>

namespace fastseq::FASTSEQ_ISA {
namespace {

constexpr int64_t kColumns = 8, kBlock = 64;

template <typename T>
class Rows {
  public:
    Rows(const AdamTable<T>& table, bool steps) : table_(table), steps_(steps), done_(table.step - (steps ? 1 : 0)) {}

    inline void update(int64_t row, const T* grad) const {
        const int64_t last = table_.last_step[row], missed = last > 0 ? done_ - last : 0;
        if (missed > 0) catch_up(row, last, missed);
        if (steps_)
            step(row, grad);
        else if (missed <= 0)
            return;
        table_.last_step[row] = static_cast<int32_t>(table_.step);
    }

    // Its lines are on their way while the row before is at work.
    inline void prefetch(int64_t row) const {
        const int64_t size = table_.width * sizeof(T);
        for (const T* data : {table_.weight, table_.exp_avg, table_.exp_avg_sq}) {
            const char* line = reinterpret_cast<const char*>(data + row * table_.width);
            for (int64_t byte = 0; byte < size; byte += 64) __builtin_prefetch(line + byte, 1);
        }
    }

  private:
    inline void catch_up(int64_t row, int64_t last, int64_t missed) const {
        const double decay = table_.beta1 / std::sqrt(table_.beta2), spread = 1.0 / std::sqrt(table_.beta2);
        const double* at = table_.history + (table_.offset + last) * kColumns;
        const int64_t lead = static_cast<int64_t>(std::min(std::max(0.0, at[2]), static_cast<double>(missed)));
        // Moments about the scale become those about the mean, as shares of the mean.
        const double* sums = at + lead * kColumns;
        const double total = sums[3], share = total > 0.0 ? 1.0 / total : 0.0;
        const double shift = sums[4] * share, two = sums[5] * share, three = sums[6] * share, four = sums[7] * share;
        const double mean = sums[1] + shift, unit = 1.0 / mean, square = shift * shift;
        const double decayed = lead > 0 ? std::pow(decay, static_cast<double>(lead)) : 1.0;
        const double spreaded = lead > 0 ? std::pow(spread, static_cast<double>(lead)) : 1.0;
        const T all = static_cast<T>(total * decayed);
        const T centre = static_cast<T>(std::min(table_.eps * mean * spreaded, 1e30));  // finite in float
        const T m2 = static_cast<T>((two - square) * unit * unit);
        const T m3 = static_cast<T>((three - 3.0 * shift * two + 2.0 * shift * square) * unit * unit * unit);
        const T m4 = static_cast<T>((four - 4.0 * shift * three + 6.0 * square * two - 3.0 * square * square) *
                                    unit * unit * unit * unit);
        double kept = missed == 1 ? table_.beta1 : std::pow(table_.beta1, static_cast<double>(missed));
        if (kept < 1e-20) kept = 0.0;  // before it is subnormal, which is slow
        const T keep1 = static_cast<T>(kept);
        const T keep2 = static_cast<T>(missed == 1 ? table_.beta2 : std::pow(table_.beta2, static_cast<double>(missed)));
        for (int64_t first = 0; first < table_.width; first += kBlock) {
            const int64_t count = std::min(kBlock, table_.width - first), place = row * table_.width + first;
            T *w = table_.weight + place, *m = table_.exp_avg + place, *v = table_.exp_avg_sq + place;
            T root[kBlock], moves[kBlock];
#pragma omp simd
            for (int64_t c = 0; c < count; ++c) {
                root[c] = sqrt(v[c]);
                const T inverse = T(1) / (root[c] + centre), y = centre * inverse;
                moves[c] = all * inverse * (T(1) + y * y * (m2 - y * (m3 - y * m4)));
            }
            double decays = 1.0, spreads = table_.eps;
            for (int64_t k = 1; k <= lead; ++k) {
                decays *= decay, spreads *= spread;
                const T part = static_cast<T>(at[k * kColumns] * decays);
                const T where = static_cast<T>(at[k * kColumns + 1] * spreads);
#pragma omp simd
                for (int64_t c = 0; c < count; ++c) moves[c] += part / (root[c] + where);
            }
#pragma omp simd
            for (int64_t c = 0; c < count; ++c) {
                w[c] -= m[c] * moves[c];
                m[c] *= keep1;
                v[c] *= keep2;
            }
        }
    }

    inline void step(int64_t row, const T* grad) const {
        const double* now = table_.history + (table_.offset + table_.step) * kColumns;
        const T rate = static_cast<T>(now[0]), eps = static_cast<T>(table_.eps * now[1]);
        const T keep1 = static_cast<T>(table_.beta1), add1 = static_cast<T>(1.0 - table_.beta1);
        const T keep2 = static_cast<T>(table_.beta2), add2 = static_cast<T>(1.0 - table_.beta2);
        const int64_t width = table_.width;
        T *w = table_.weight + row * width, *m = table_.exp_avg + row * width, *v = table_.exp_avg_sq + row * width;
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) {
            m[c] = keep1 * m[c] + add1 * grad[c];
            v[c] = keep2 * v[c] + add2 * grad[c] * grad[c];
            w[c] -= rate * m[c] / (sqrt(v[c]) + eps);
        }
    }

    static float sqrt(float x) { return __builtin_sqrtf(x); }
    static double sqrt(double x) { return __builtin_sqrt(x); }

    const AdamTable<T>& table_;
    const bool steps_;
    const int64_t done_;
};

}  // namespace

template <typename T>
void adam_rows(const AdamTable<T>& table, const int64_t* row, int64_t count, const T* grad, int threads) {
    const Rows<T> rows(table, grad != nullptr);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 64)
    for (int64_t i = 0; i < count; ++i) {
        if (row != nullptr && i + 1 < count) rows.prefetch(row[i + 1]);
        rows.update(row == nullptr ? i : row[i], grad == nullptr ? nullptr : grad + i * table.width);
    }
}

FASTSEQ_INSTANTIATE(adam_rows)

}  // namespace fastseq::FASTSEQ_ISA
