// Caser's convolutions over shared windows, backward.
//
// A pooled value's gradient flows to one position only, and neighbouring histories mostly share it: what is left is a
// sparse list of (row, filter) pairs, each of which adds a multiple of the filter to the gradient of the rows it
// covered and a multiple of those rows to the gradient of the filter. Filters are stored apart, [height, d] each, so
// that either is one pass over contiguous memory.
//
// Two passes over the pairs: one where a thread owns sequences (gradient of x), one where it owns filters (gradients
// of weights, biases and padding row). Nothing is shared and every sum has one order, whatever the threads.
#include "caser_windows.h"

#include <omp.h>

#include <algorithm>

#include "simd.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

constexpr int kFilters = 8;  // taken together: their gradients of one target lie in one cache line

struct History {
    int64_t target, first;  // first row
    int length;
};

template <typename T>
History history(const CaserPlan& plan, const CaserInputs<T>& in, int64_t s, int64_t t) {
    const int64_t target = plan.order[t], stop = plan.stops[target], all = stop - plan.offsets[s];
    const int length = static_cast<int>(all < in.max_len ? all : in.max_len);
    return {target, stop - length, length};
}

template <typename T>
int64_t first_row(const CaserPlan& plan, const CaserInputs<T>& in, int64_t s) {
    const int64_t start = plan.offsets[s], first = plan.first_stop[s];
    return first - start > in.max_len ? first - in.max_len : start;
}

// Where filter `filter` of height `height` begins in weights stored filter by filter, in rows.
inline int64_t filter_row(int n_h, int height, int filter) {
    return static_cast<int64_t>(n_h) * height * (height - 1) / 2 + static_cast<int64_t>(filter) * height;
}

template <typename T>
void add_scaled(int64_t count, T factor, const T* x, T* y) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) y[i] += factor * x[i];
}

// What a thread needs to collect the pairs of one sequence: sums [row][kFilters] is zero between uses.
template <typename T>
struct Workspace {
    T* sums;
    int32_t* rows;  // [kFilters][capacity]: rows whose sum is not zero, from the sequence's first one
    int64_t capacity;
    int64_t counts[kFilters];
};

// Collects the gradients of the filters [first, first + count) of the list over the targets of sequence s. Complete
// convolutions are summed in the workspace; those cut short by the history's end are handed to
// partial(filter - first, first row, real taps, gradient), real taps 0 for a window of padding alone.
template <typename T, typename Partial>
void collect(const CaserPlan& plan, const CaserInputs<T>& in, const T* grad, const int32_t* position, int64_t s,
             int first, int count, Workspace<T>& work, const Partial& partial) {
    const int n_lanes = in.max_len * in.n_h;
    const int64_t skipped = static_cast<int64_t>(in.n_v) * in.d, base = first_row(plan, in, s);
    int heights[kFilters];
    for (int lane = 0; lane < count; ++lane) {
        heights[lane] = (first + lane) / in.n_h + 1;
        work.counts[lane] = 0;
    }
    for (int64_t t = plan.begin[s]; t < plan.begin[s + 1]; ++t) {
        const History h = history(plan, in, s, t);
        const T* g = grad + h.target * (skipped + n_lanes) + skipped + first;
        const int32_t* p = position + h.target * n_lanes + first;
        for (int lane = 0; lane < count; ++lane) {
            if (p[lane] + heights[lane] > h.length && p[lane] >= 0) {
                const int real = h.length > p[lane] ? h.length - p[lane] : 0;
                if (g[lane] != T(0)) partial(lane, h.first + p[lane], real, g[lane]);
                continue;
            }
            // Closed ReLUs and zero gradients (dropout) come at random: no branch.
            const bool open = p[lane] >= 0;
            const int64_t row = open ? h.first - base + p[lane] : 0;
            T& sum = work.sums[row * kFilters + lane];
            const T value = open ? g[lane] : T(0);
            work.rows[lane * work.capacity + work.counts[lane]] = static_cast<int32_t>(row);
            work.counts[lane] += (sum == T(0)) & (value != T(0));
            sum += value;
        }
    }
}

// Hands each collected pair to use(row, gradient) and clears it.
template <typename T, typename Use>
void drain(Workspace<T>& work, int lane, int64_t base, const Use& use) {
    for (int64_t i = 0; i < work.counts[lane]; ++i) {
        const int32_t row = work.rows[lane * work.capacity + i];
        T& sum = work.sums[static_cast<int64_t>(row) * kFilters + lane];
        if (sum != T(0)) use(base + row, sum);
        sum = T(0);
    }
}

// The memory of every thread's workspace.
template <typename T>
class Workspaces {
  public:
    Workspaces(const CaserPlan& plan, int threads)
        : capacity_(most_targets(plan) + 1),  // an entry that does not count is written all the same
          size_((plan.max_rows + 1) * kFilters),
          sums_(size_ * threads),
          rows_(capacity_ * kFilters * threads) {
        std::fill_n(sums_.get(), size_ * threads, T(0));
    }
    Workspace<T> of(int64_t thread) const {
        return {sums_.get() + thread * size_, rows_.get() + thread * capacity_ * kFilters, capacity_, {}};
    }

  private:
    static int64_t most_targets(const CaserPlan& plan) {
        int64_t most = 0;
        for (int64_t s = 0; s < plan.n_sequences; ++s) most = std::max(most, plan.begin[s + 1] - plan.begin[s]);
        return most;
    }
    const int64_t capacity_, size_;
    const Buffer<T> sums_;
    const Buffer<int32_t> rows_;
};

// Adds the partial sums of one chunk, [rows of its histories, d], to the gradient of x, and clears them.
template <typename T>
void flush(const CaserPlan& plan, const CaserInputs<T>& in, int64_t chunk, T* partial, T* dx) {
    for (int64_t s = plan.chunks[chunk]; s < plan.chunks[chunk + 1]; ++s) {
        const int64_t base = first_row(plan, in, s), size = (plan.last_stop[s] - base) * in.d;
        add_scaled<T>(size, T(1), partial, dx + base * in.d);
        for (int64_t i = 0; i < size; ++i) partial[i] = T(0);
        partial += size;
    }
}

// Gradient of x; filters is weight_h filter by filter. Every kFlush filters are summed apart: fewer rounding errors.
template <typename T>
void backward_x(const CaserPlan& plan, const CaserInputs<T>& in, const T* filters, const T* grad,
                const int32_t* position, T* dx, int threads) {
    constexpr int kFlush = 8 * kFilters;
    const int n_lanes = in.max_len * in.n_h;
    const int64_t width = static_cast<int64_t>(in.n_v) * in.d + n_lanes;
    const Workspaces<T> workspaces(plan, threads);
    const Buffer<T> partials(plan.max_rows * in.d * threads);
    std::fill_n(partials.get(), plan.max_rows * in.d * threads, T(0));
#pragma omp parallel num_threads(threads)
    {
        Workspace<T> work = workspaces.of(omp_get_thread_num());
        T* partial = partials.get() + omp_get_thread_num() * plan.max_rows * in.d;
#pragma omp for schedule(dynamic)
        for (int64_t chunk = 0; chunk < plan.n_chunks; ++chunk) {
            for (int64_t s = plan.chunks[chunk]; s < plan.chunks[chunk + 1]; ++s)
                for (int64_t t = plan.begin[s]; t < plan.begin[s + 1]; ++t) {
                    const History h = history(plan, in, s, t);
                    for (int v = 0; v < in.n_v; ++v) {
                        const T* g = grad + h.target * width + static_cast<int64_t>(v) * in.d;
                        for (int l = 0; l < h.length; ++l)
                            add_scaled<T>(in.d, in.weight_v[v * in.max_len + l], g, dx + (h.first + l) * in.d);
                    }
                }
            for (int first = 0; first < n_lanes; first += kFilters) {
                const int count = n_lanes - first < kFilters ? n_lanes - first : kFilters;
                int64_t above = 0;  // rows of the sequences before this one
                for (int64_t s = plan.chunks[chunk]; s < plan.chunks[chunk + 1]; ++s) {
                    const int64_t base = first_row(plan, in, s);
                    T* sums = partial + (above - base) * in.d;
                    above += plan.last_stop[s] - base;
                    const auto filter = [&](int lane) {
                        const int height = (first + lane) / in.n_h + 1;
                        return filters + filter_row(in.n_h, height, (first + lane) % in.n_h) * in.d;
                    };
                    collect(plan, in, grad, position, s, first, count, work,
                            [&](int lane, int64_t row, int real, T g) {
                                add_scaled(static_cast<int64_t>(real) * in.d, g, filter(lane), sums + row * in.d);
                            });
                    for (int lane = 0; lane < count; ++lane) {
                        const int64_t size = static_cast<int64_t>((first + lane) / in.n_h + 1) * in.d;
                        const T* weight = filter(lane);
                        drain(work, lane, base,
                              [&](int64_t row, T g) { add_scaled(size, g, weight, sums + row * in.d); });
                    }
                }
                if ((first + kFilters) % kFlush == 0 || first + kFilters >= n_lanes)
                    flush(plan, in, chunk, partial, dx);
            }
        }
    }
}

// Gradients of weight_h, bias_h and the padding row's part in the filters [first, first + count) of the list.
// weight_grad [kFilters, max_len, d] and padding_taps [kFilters, max_len] are the thread's own. Scalars are summed over
// the targets in double.
template <typename T>
void backward_filters(const CaserPlan& plan, const CaserInputs<T>& in, const T* filters, const T* grad,
                      const int32_t* position, int first, int count, Workspace<T>& work, T* weight_grad,
                      double* padding_taps, const CaserGradients<T>& result, T* padding_grad) {
    const int64_t stride = static_cast<int64_t>(in.max_len) * in.d;
    double bias[kFilters] = {};
    for (int64_t i = 0; i < kFilters * stride; ++i) weight_grad[i] = T(0);
    for (int64_t i = 0; i < kFilters * static_cast<int64_t>(in.max_len); ++i) padding_taps[i] = 0.0;
    for (int64_t s = 0; s < plan.n_sequences; ++s) {
        collect(plan, in, grad, position, s, first, count, work, [&](int lane, int64_t row, int real, T g) {
            add_scaled(static_cast<int64_t>(real) * in.d, g, in.x + row * in.d, weight_grad + lane * stride);
            padding_taps[lane * in.max_len + real] += g;
            bias[lane] += g;
        });
        const int64_t base = first_row(plan, in, s);
        for (int lane = 0; lane < count; ++lane) {
            const int64_t size = static_cast<int64_t>((first + lane) / in.n_h + 1) * in.d;
            drain(work, lane, base, [&](int64_t row, T g) {
                add_scaled(size, g, in.x + row * in.d, weight_grad + lane * stride);
                bias[lane] += g;
            });
        }
    }
    for (int lane = 0; lane < count; ++lane) {
        const int height = (first + lane) / in.n_h + 1, filter = (first + lane) % in.n_h;
        const T* weight = filters + filter_row(in.n_h, height, filter) * in.d;
        result.bias_h[first + lane] = static_cast<T>(bias[lane]);
        double running = 0.0;  // a sum cut short after m taps has the padding row at the taps m, m + 1, ...
        for (int tap = 0; tap < height; ++tap) {
            running += padding_taps[lane * in.max_len + tap];
            const T padded = static_cast<T>(running);
            const int64_t index = static_cast<int64_t>(height) * (height - 1) / 2 + tap;
            T* to = result.weight_h + (index * in.n_h + filter) * in.d;
            const T* from = weight_grad + lane * stride + static_cast<int64_t>(tap) * in.d;
            for (int k = 0; k < in.d; ++k) to[k] = from[k] + padded * in.padding_row[k];
            if (padded != T(0)) add_scaled<T>(in.d, padded, weight + static_cast<int64_t>(tap) * in.d, padding_grad);
        }
    }
}

// Gradients of vertical filter v, its bias, and its part of the padding row's. sums [max_len, d] and padded
// [max_len + 1] are the thread's own.
template <typename T>
void backward_vertical(const CaserPlan& plan, const CaserInputs<T>& in, const T* grad, int v, T* sums,
                       double* padded, const CaserGradients<T>& result, T* padding_grad) {
    const int64_t width = static_cast<int64_t>(in.n_v) * in.d + static_cast<int64_t>(in.max_len) * in.n_h;
    const T* weight = in.weight_v + static_cast<int64_t>(v) * in.max_len;
    for (int64_t i = 0; i < static_cast<int64_t>(in.max_len) * in.d; ++i) sums[i] = T(0);
    for (int l = 0; l <= in.max_len; ++l) padded[l] = 0.0;
    double bias = 0.0;
    for (int64_t s = 0; s < plan.n_sequences; ++s)
        for (int64_t t = plan.begin[s]; t < plan.begin[s + 1]; ++t) {
            const History h = history(plan, in, s, t);
            const T* g = grad + h.target * width + static_cast<int64_t>(v) * in.d;
            T total = T(0), product = T(0);
#pragma omp simd reduction(+ : total, product)
            for (int k = 0; k < in.d; ++k) {
                total += g[k];
                product += g[k] * in.padding_row[k];
            }
            bias += total;
            padded[h.length] += product;
            const T* x = in.x + h.first * in.d;
            for (int l = 0; l < h.length; ++l) {
                T* sum = sums + static_cast<int64_t>(l) * in.d;
                const T* row = x + static_cast<int64_t>(l) * in.d;
#pragma omp simd
                for (int k = 0; k < in.d; ++k) sum[k] += g[k] * row[k];
            }
            T rest = T(0);
            for (int l = h.length; l < in.max_len; ++l) rest += weight[l];
            if (h.length < in.max_len) add_scaled<T>(in.d, rest, g, padding_grad);
        }
    result.bias_v[v] = static_cast<T>(bias);
    double running = 0.0;
    for (int l = 0; l < in.max_len; ++l) {
        running += padded[l];
        T sum = T(0);
        const T* row = sums + static_cast<int64_t>(l) * in.d;
#pragma omp simd reduction(+ : sum)
        for (int k = 0; k < in.d; ++k) sum += row[k];
        result.weight_v[static_cast<int64_t>(v) * in.max_len + l] = static_cast<T>(sum + running);
    }
}

}  // namespace

template <typename T>
void caser_windows_backward(const CaserPlan& plan, const CaserInputs<T>& in, const T* grad, const int32_t* position,
              const CaserGradients<T>& result, int threads) {
    const int n_lanes = in.max_len * in.n_h, n_groups = (n_lanes + kFilters - 1) / kFilters;
    const int64_t n_taps = static_cast<int64_t>(in.max_len) * (in.max_len + 1) / 2;
    const Buffer<T> filters(n_taps * in.n_h * in.d);
    const Buffer<T> padding_grads(static_cast<int64_t>(n_groups + in.n_v) * in.d);
    std::fill_n(padding_grads.get(), static_cast<int64_t>(n_groups + in.n_v) * in.d, T(0));
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int height = in.max_len; height >= 1; --height)
        for (int filter = 0; filter < in.n_h; ++filter)
            for (int tap = 0; tap < height; ++tap) {
                const int64_t index = static_cast<int64_t>(height) * (height - 1) / 2 + tap;
                const T* from = in.weight_h + (index * in.n_h + filter) * in.d;
                T* to = filters.get() + (filter_row(in.n_h, height, filter) + tap) * in.d;
                for (int k = 0; k < in.d; ++k) to[k] = from[k];
            }
    backward_x(plan, in, filters.get(), grad, position, result.x, threads);
    const Workspaces<T> workspaces(plan, threads);
    const int64_t sums_size = static_cast<int64_t>(kFilters) * in.max_len * in.d;
    const int64_t taps_size = static_cast<int64_t>(kFilters) * in.max_len + 1;
    const Buffer<T> all_sums(sums_size * threads);
    const Buffer<double> all_taps(taps_size * threads);
#pragma omp parallel num_threads(threads)
    {
        Workspace<T> work = workspaces.of(omp_get_thread_num());
        T* sums = all_sums.get() + omp_get_thread_num() * sums_size;
        double* taps = all_taps.get() + omp_get_thread_num() * taps_size;
#pragma omp for schedule(dynamic)
        for (int item = 0; item < n_groups + in.n_v; ++item) {
            T* padding_grad = padding_grads.get() + static_cast<int64_t>(item) * in.d;
            if (item < n_groups) {
                const int first = (n_groups - 1 - item) * kFilters;  // the tallest first
                const int count = n_lanes - first < kFilters ? n_lanes - first : kFilters;
                backward_filters(plan, in, filters.get(), grad, position, first, count, work, sums, taps, result,
                                 padding_grad);
            } else {
                backward_vertical(plan, in, grad, item - n_groups, sums, taps, result, padding_grad);
            }
        }
    }
    for (int item = 0; item < n_groups + in.n_v; ++item)
        add_scaled<T>(in.d, T(1), padding_grads.get() + static_cast<int64_t>(item) * in.d, result.padding_row);
}

FASTSEQ_INSTANTIATE(caser_windows_backward)

}  // namespace fastseq::FASTSEQ_ISA
