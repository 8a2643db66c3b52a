// Softmax cross-entropy over a catalogue, with its gradients, from three matrix products.
//
// A block of rows goes through all classes in chunks of kChunk, classes down and rows across, so that what a row needs
// of a chunk is found for a vector of rows at a time. The first pass computes a chunk's logits and keeps their
// exponentials beside the largest of them (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018).
// With the partition function known, the second pass turns them into gradients and multiplies these at once with the
// chunk's weights (for dh) and with the rows (for dweight). However many rows there are, what is kept stays kKept.
#include "cross_entropy.h"

#include <omp.h>

#include <cmath>
#include <limits>

#include "operand.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

constexpr int64_t kChunk = 128;                      // classes: a chunk and a panel of rows share the first cache
constexpr int64_t kKept = 1 << 24;                   // values of a block of rows
constexpr int64_t kFewestRows = 64, kMostRows = 768;
constexpr int64_t kGroups = 32;                      // of chunks; each sums its part of dh by itself

// How an exponential or a logit is kept between the passes.
FASTSEQ_INLINE void keep(float x, uint16_t& kept) { kept = static_cast<uint16_t>(round_to_bfloat16(x) >> 16); }
FASTSEQ_INLINE void keep(float x, float& kept) { kept = x; }
FASTSEQ_INLINE void keep(double x, double& kept) { kept = x; }
FASTSEQ_INLINE float kept_value(uint16_t kept) { return low_of(static_cast<BFloat16Pair>(kept)); }
FASTSEQ_INLINE float kept_value(float kept) { return kept; }
FASTSEQ_INLINE double kept_value(double kept) { return kept; }

// O: the operands of the products (operand.h). S: the type of everything else. Kept: of what the first pass leaves.
template <typename O, typename S, typename Kept>
class Pass {
    typedef uint16_t Half __attribute__((may_alias));  // of a pair
    using T = typename O::T;
    static constexpr bool kConverts = !std::is_same_v<S, T>;
    static constexpr int64_t kLanes = kSumVectors * Simd<S>::lanes;

  public:
    explicit Pass(const CrossEntropy<S>& a)
        : a_(a),
          chunks_((a.classes + kChunk - 1) / kChunk),
          groups_(std::min(kGroups, chunks_)),
          block_(padded(std::min(a.rows, std::clamp(kKept / (chunks_ * kChunk) / 64 * 64, kFewestRows, kMostRows)))),
          width_(padded(a.width)),
          stride_(block_ + 64 / sizeof(S)),
          kept_(a.dh == nullptr ? 0 : chunks_ * kChunk * stride_),
          top_(chunks_ * block_),
          sum_(chunks_ * block_),
          target_logit_(block_),
          partial_(a.dh == nullptr ? 0 : groups_ * block_ * a.width),
          row_columns_(O::depth(a.width) * block_),
          row_panels_(a.dh == nullptr ? 0 : O::depth(block_) * width_),
          own_size_(std::max(O::depth(a.width) * kChunk, O::depth(kChunk) * width_) +
                    (kConverts ? kChunk * O::depth(block_) + O::depth(kChunk) * stride_ : 0)),
          own_(a.threads * own_size_) {}

    void run() {
        for (int64_t first = 0; first < a_.rows; first += block_) run_block(first, std::min(block_, a_.rows - first));
    }

  private:
    static int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

    int64_t classes_of(int64_t chunk) const { return std::min(kChunk, a_.classes - chunk * kChunk); }

    T* own() const { return own_.get() + omp_get_thread_num() * own_size_; }

    bool counts(int64_t row) const { return a_.targets[row] != a_.ignore_index; }

    S upstream(int64_t row) const { return !counts(row) ? S(0) : a_.upstream == nullptr ? S(1) : a_.upstream[row]; }

    void run_block(int64_t first, int64_t rows) {
#pragma omp parallel num_threads(a_.threads)
        {
#pragma omp for schedule(static)
            for (int64_t row = 0; row < block_; row += kLanes)
                pack_panel<O, S>({a_.h + first * a_.width, a_.width, 1}, row, rows, kLanes, a_.width, own(),
                                 row_columns_.get() + row * O::depth(a_.width));
#pragma omp for schedule(dynamic, 1)
            for (int64_t chunk = 0; chunk < chunks_; ++chunk) score(chunk, first, rows);
#pragma omp for schedule(static)
            for (int64_t row = 0; row < rows; row += kLanes) finish(first, row, std::min(kLanes, rows - row));
            if (a_.dh != nullptr) {
#pragma omp for schedule(static)
                for (int64_t column = 0; column < width_; column += kLanes)
                    pack_panel<O, S>({a_.h + first * a_.width, 1, a_.width}, column, a_.width, kLanes, rows, nullptr,
                                     row_panels_.get() + column * O::depth(rows));
#pragma omp for schedule(dynamic, 1)
                for (int64_t group = 0; group < groups_; ++group)
                    for (int64_t chunk = chunks_ * group / groups_; chunk < chunks_ * (group + 1) / groups_; ++chunk)
                        differentiate(chunk, first, rows, partial_.get() + group * block_ * a_.width,
                                      chunk > chunks_ * group / groups_);
#pragma omp for schedule(static)
                for (int64_t i = 0; i < rows; ++i) {
                    S* dh = a_.dh + (first + i) * a_.width;
                    std::fill(dh, dh + a_.width, S(0));
                    for (int64_t group = 0; group < groups_; ++group) {
                        const S* part = partial_.get() + (group * block_ + i) * a_.width;
#pragma omp simd
                        for (int64_t d = 0; d < a_.width; ++d) dh[d] += part[d];
                    }
                }
            }
        }
    }

    // The chunk's logits for every row, and of each row their largest and the sum of exponentials.
    void score(int64_t chunk, int64_t first, int64_t rows) {
        const int64_t classes = classes_of(chunk), begin = chunk * kChunk, depth = O::depth(a_.width);
        const S *weight = a_.weight + begin * a_.width, *bias = a_.bias == nullptr ? nullptr : a_.bias + begin;
        const T* left;
        if constexpr (kConverts) {
            for (int64_t c = 0; c < classes; ++c) O::along(weight + c * a_.width, a_.width, own() + c * depth);
            left = own();
        } else {
            left = weight;
        }
        alignas(64) S logits[kChunk * kLanes];
        for (int64_t row = 0; row < rows; row += kLanes) {
            multiply<kSumRows, kSumVectors>(left, depth, 1, row_columns_.get() + row * depth, 0, kLanes, depth, classes,
                                            kLanes, false, logits, kLanes);
            S *top = top_.get() + chunk * block_ + row, *sum = sum_.get() + chunk * block_ + row;
            for (int64_t l = 0; l < kLanes; ++l) top[l] = -std::numeric_limits<S>::infinity();
            for (int64_t c = 0; c < classes; ++c) {
                S* x = logits + c * kLanes;
                const S shift = bias == nullptr ? S(0) : bias[c], cap = a_.softcap;
                if (cap > S(0))
                    for (int64_t l = 0; l < kLanes; ++l) x[l] = cap * tanh_vectorised((x[l] + shift) / cap);
                else if (bias != nullptr)
                    for (int64_t l = 0; l < kLanes; ++l) x[l] += shift;
#pragma omp simd
                for (int64_t l = 0; l < kLanes; ++l) top[l] = x[l] > top[l] ? x[l] : top[l];
            }
            const int64_t count = std::min(kLanes, rows - row);
            for (int64_t l = 0; l < count; ++l) {
                const int64_t target = a_.targets[first + row + l] - begin;
                if (target >= 0 && target < classes) target_logit_.get()[row + l] = logits[target * kLanes + l];
            }
            alignas(64) S shift[kLanes], total[kLanes];
            for (int64_t l = 0; l < kLanes; ++l) {
                shift[l] = top[l] > -std::numeric_limits<S>::infinity() ? top[l] : S(0);  // -inf - -inf would be NaN
                total[l] = S(0);
            }
            Kept* kept = kept_.get() + begin * stride_ + row;
            const int mode = a_.dh == nullptr ? 0 : a_.softcap > S(0) ? 1 : 2;
            for (int64_t c = 0; c < classes; ++c) {
                const S* x = logits + c * kLanes;
                if (mode == 2) {
#pragma omp simd
                    for (int64_t l = 0; l < kLanes; ++l) {
                        const S power = bounded_exp(x[l] - shift[l]);
                        total[l] += power;
                        keep(power, kept[c * stride_ + l]);
                    }
                } else {
#pragma omp simd
                    for (int64_t l = 0; l < kLanes; ++l) total[l] += bounded_exp(x[l] - shift[l]);
                    if (mode == 1)
                        for (int64_t l = 0; l < kLanes; ++l) keep(x[l], kept[c * stride_ + l]);
                }
            }
            for (int64_t l = 0; l < kLanes; ++l) sum[l] = total[l];
        }
    }

    // Losses and partition functions of rows from those of their chunks, in order; a NaN in one of them stays. top_
    // becomes what an exponential of the chunk is multiplied with to be a gradient.
    void finish(int64_t first, int64_t row, int64_t count) {
        for (int64_t l = row; l < row + count; ++l) {
            S top = -std::numeric_limits<S>::infinity(), sum = S(0);
            for (int64_t chunk = 0; chunk < chunks_; ++chunk) top = std::max(top, top_.get()[chunk * block_ + l]);
            const S shift = top > -std::numeric_limits<S>::infinity() ? top : S(0);
            for (int64_t chunk = 0; chunk < chunks_; ++chunk)
                sum += sum_.get()[chunk * block_ + l] * bounded_exp(top_.get()[chunk * block_ + l] - shift);
            const S lse = shift + std::log(sum);
            a_.lse[first + l] = lse;
            a_.loss[first + l] = counts(first + l) ? lse - target_logit_.get()[l] : S(0);
            for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
                S& value = top_.get()[chunk * block_ + l];
                const S largest = value > -std::numeric_limits<S>::infinity() ? value : S(0);  // as in score
                value = bounded_exp(largest - lse) * upstream(first + l);
            }
        }
    }

    // What the first pass kept of the chunk becomes gradients; dweight and dbias of the chunk and its part of dh
    // follow from them.
    void differentiate(int64_t chunk, int64_t first, int64_t rows, S* partial, bool add) {
        const int64_t classes = classes_of(chunk), begin = chunk * kChunk;
        const int64_t depth = O::depth(rows), class_depth = O::depth(classes);
        Kept* kept = kept_.get() + begin * stride_;
        const S* factor = top_.get() + chunk * block_;
        const S* weight = a_.weight + begin * a_.width;
        T* panels = own();
        const T *along, *across;  // the gradients as operands: class by class, and row by row
        int64_t along_row, across_step;
        if constexpr (std::is_same_v<Kept, uint16_t>) {
            if (a_.dbias != nullptr) add_bias_gradients(kept, factor, chunk, first, rows);
            T *by_class = panels + O::depth(kChunk) * width_, *by_row = by_class + kChunk * O::depth(block_);
            pair_up(kept, factor, chunk, first, rows, by_class, by_row);
            along = by_class, along_row = depth, across = by_row, across_step = stride_;
        } else {
            make_gradients(kept, factor, chunk, first, rows);
            if (a_.dbias != nullptr) add_bias_gradients(kept, nullptr, chunk, first, rows);
            if constexpr (kConverts) {
                T *by_class = panels + O::depth(kChunk) * width_, *by_row = by_class + kChunk * O::depth(block_);
                for (int64_t c = 0; c < classes; ++c) O::along(kept + c * stride_, rows, by_class + c * depth);
                for (int64_t k = 0; k < class_depth; ++k)
                    O::across(kept, stride_, k, classes, rows, by_row + k * stride_);
                along = by_class, along_row = depth, across = by_row, across_step = stride_;
            } else {
                along = across = kept, along_row = across_step = stride_;
            }
        }
        multiply<kSumRows, kSumVectors>(along, along_row, 1, row_panels_.get(), depth, kLanes, depth, classes, a_.width,
                                        first > 0, a_.dweight + begin * a_.width, a_.width);
        if (!kConverts && a_.width % kLanes == 0) {  // the weights are read where they lie
            if constexpr (!kConverts)
                multiply<kSumRows, kSumVectors>(across, 1, across_step, weight, 1, a_.width, class_depth, rows,
                                                a_.width, add, partial, a_.width);
            return;
        }
        for (int64_t column = 0; column < width_; column += kLanes)
            pack_panel<O, S>({weight, 1, a_.width}, column, a_.width, kLanes, classes, nullptr,
                             panels + column * class_depth);
        multiply<kSumRows, kSumVectors>(across, 1, across_step, panels, class_depth, kLanes, class_depth, rows,
                                        a_.width, add, partial, a_.width);
    }

    // Calls function(row, class within the chunk, its gradient's part of the target) for the targets in a chunk.
    template <typename Function>
    void for_each_target(int64_t chunk, int64_t first, int64_t rows, Function function) {
        for (int64_t l = 0; l < rows; ++l) {
            const int64_t target = a_.targets[first + l] - chunk * kChunk;
            if (target < 0 || target >= classes_of(chunk)) continue;
            const S ratio = a_.softcap > S(0) ? target_logit_.get()[l] / a_.softcap : S(0);
            function(l, target, upstream(first + l) * (S(1) - ratio * ratio));
        }
    }

    // In place, from exponentials (or logits, where there is a softcap) to gradients.
    void make_gradients(Kept* kept, const S* factor, int64_t chunk, int64_t first, int64_t rows) {
        const S cap = a_.softcap;
        for (int64_t c = 0; c < classes_of(chunk); ++c) {
            Kept* x = kept + c * stride_;
            if (cap > S(0)) {
                for (int64_t l = 0; l < rows; ++l) {
                    const S ratio = x[l] / cap;
                    x[l] = bounded_exp(x[l] - a_.lse[first + l]) * upstream(first + l) * (S(1) - ratio * ratio);
                }
            } else {
#pragma omp simd
                for (int64_t l = 0; l < rows; ++l) x[l] *= factor[l];
            }
        }
        for_each_target(chunk, first, rows,
                        [&](int64_t l, int64_t target, S value) { kept[target * stride_ + l] -= value; });
    }

    // From exponentials to pairs of gradients along the rows, [class][pair], and along the classes, [pair][row].
    void pair_up(const uint16_t* kept, const S* factor, int64_t chunk, int64_t first, int64_t rows, T* by_class,
                 T* by_row) {
        const int64_t classes = classes_of(chunk), depth = O::depth(rows);
        Half* halves = reinterpret_cast<Half*>(by_class);  // [class][2 * depth]
        for (int64_t k = 0; k < O::depth(classes); ++k) {
            const bool both = 2 * k + 1 < classes;
            const uint16_t *low = kept + 2 * k * stride_, *high = both ? low + stride_ : low;
            Half *low_half = halves + 2 * k * 2 * depth, *high_half = both ? low_half + 2 * depth : low_half;
            T* pairs = by_row + k * stride_;
            const S second = both ? S(1) : S(0);
#pragma omp simd
            for (int64_t l = 0; l < rows; ++l) {
                const T pair = make_pair(kept_value(low[l]) * factor[l], kept_value(high[l]) * factor[l] * second);
                pairs[l] = pair;
                high_half[l] = static_cast<uint16_t>(pair >> 16);
                low_half[l] = static_cast<uint16_t>(pair);  // last: without a second class both are the same place
            }
            if (rows % 2 != 0) low_half[rows] = high_half[rows] = 0;
        }
        for_each_target(chunk, first, rows, [&](int64_t l, int64_t target, S value) {
            const uint32_t bits = round_to_bfloat16(kept_value(kept[target * stride_ + l]) * factor[l] - value);
            halves[target * 2 * depth + l] = static_cast<uint16_t>(bits >> 16);
            T& pair = by_row[target / 2 * stride_ + l];
            pair = static_cast<T>(target % 2 != 0 ? (pair & 0xffffu) | bits : (pair & 0xffff0000u) | bits >> 16);
        });
    }

    // dbias of the chunk, from gradients (factor null) or from exponentials.
    void add_bias_gradients(const Kept* kept, const S* factor, int64_t chunk, int64_t first, int64_t rows) {
        S* dbias = a_.dbias + chunk * kChunk;
        for (int64_t c = 0; c < classes_of(chunk); ++c) {
            S sum = S(0);
            for (int64_t l = 0; l < rows; ++l)
                sum += kept_value(kept[c * stride_ + l]) * (factor == nullptr ? S(1) : factor[l]);
            dbias[c] = (first > 0 ? dbias[c] : S(0)) + sum;
        }
        if (factor != nullptr)
            for_each_target(chunk, first, rows, [&](int64_t, int64_t target, S value) { dbias[target] -= value; });
    }

    const CrossEntropy<S>& a_;
    const int64_t chunks_, groups_;
    const int64_t block_;  // rows of a block, whole panels of them
    const int64_t width_;  // of h, in whole panels
    const int64_t stride_;  // from class to class: no power of two, whose lines would evict each other
    Buffer<Kept> kept_;    // [class][row]
    Buffer<S> top_, sum_;  // [chunk][row]
    Buffer<S> target_logit_;  // [row]
    Buffer<S> partial_;       // [group][row][width] of dh
    Buffer<T> row_columns_;   // the block's rows of h as columns, in panels of rows
    Buffer<T> row_panels_;    // and as rows, in panels of the width
    const int64_t own_size_;
    Buffer<T> own_;  // for each thread: a chunk's weights and gradients as operands
};

template <typename O, typename S, typename Kept = S>
void run(const CrossEntropy<S>& a) {
    if (a.rows > 0) Pass<O, S, Kept>(a).run();
    if (a.rows == 0 && a.dh != nullptr) {
        std::fill(a.dweight, a.dweight + a.classes * a.width, S(0));
        if (a.dbias != nullptr) std::fill(a.dbias, a.dbias + a.classes, S(0));
    }
}

}  // namespace

void cross_entropy_f32(const CrossEntropy<float>& a) { run<Operand<float, false>>(a); }
void cross_entropy_f64(const CrossEntropy<double>& a) { run<Operand<double, false>>(a); }
void cross_entropy_bf16(const CrossEntropy<float>& a) {
    if (a.softcap > 0.0f)  // logits are kept, which lose too much as bfloat16
        run<Operand<float, true>>(a);
    else
        run<Operand<float, true>, float, uint16_t>(a);
}

}  // namespace fastseq::FASTSEQ_ISA
