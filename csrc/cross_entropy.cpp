// Softmax cross-entropy over a catalogue, with its gradients, from three matrix products.
//
// A block of rows goes through all classes in chunks of kChunk. The first pass computes a chunk's logits, keeps them,
// and takes each row's maximum and sum of exponentials while they are in the first cache (Milakov and Gimelshein,
// "Online normalizer calculation for softmax", 2018). With the partition function known, the second pass turns the
// chunk into gradients of the logits and multiplies them at once with the chunk's weights (for dh) and with the rows
// (for dweight). What is kept is kKept logits at most, however many rows there are.
#include "cross_entropy.h"

#include <omp.h>

#include <cmath>
#include <limits>

#include "operand.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

constexpr int64_t kChunk = 256;                     // classes: a chunk's weights, logits and sums share the second cache
constexpr int64_t kKept = 1 << 24;                  // logits of a block of rows
constexpr int64_t kFewestRows = 48, kMostRows = 768;
constexpr int64_t kGroups = 32;                     // of chunks; each sums its part of dh by itself

// C [rows, columns] = or += A B from a packed B, one panel after the other. A row r of A begins at a + r * a_row, its
// element k at step k * a_step; C is `out_row` wide.
template <int R, int C, typename T, typename S>
void multiply(const T* a, int64_t a_row, int64_t a_step, const T* panels, int64_t depth, int64_t rows, int64_t columns,
              bool add, S* out, int64_t out_row) {
    constexpr int64_t lanes = C * Simd<S>::lanes;
    alignas(64) S sums[R * lanes];
    const T* row[R];
    for (int64_t i = 0; i < rows; i += R) {
        const int count = static_cast<int>(std::min<int64_t>(R, rows - i));
        for (int r = 0; r < count; ++r) row[r] = a + (i + r) * a_row;
        for (int64_t column = 0; column < columns; column += lanes) {
            product_of<C, R>(count, row, a_step, panels + column * depth, lanes, depth, sums);
            const int64_t width = std::min(lanes, columns - column);
            for (int r = 0; r < count; ++r) {
                S* to = out + (i + r) * out_row + column;
                for (int64_t l = 0; l < width; ++l) to[l] = (add ? to[l] : S(0)) + sums[r * lanes + l];
            }
        }
    }
}

template <typename O, typename S>
class Pass {
    using T = typename O::T;
    static constexpr bool kConverts = !std::is_same_v<S, T>;
    static constexpr int64_t kLanes = kSumVectors * Simd<S>::lanes;

  public:
    explicit Pass(const CrossEntropy<S>& a)
        : a_(a),
          chunks_((a.classes + kChunk - 1) / kChunk),
          groups_(std::min(kGroups, chunks_)),
          block_(std::min(std::max<int64_t>(1, a.rows),
                          std::clamp(kKept / (chunks_ * kChunk) / 2 * 2, kFewestRows, kMostRows))),
          padded_width_(padded(a.width)),
          logits_(a.dh == nullptr ? a.threads * block_ * kChunk : chunks_ * block_ * kChunk),
          top_(chunks_ * block_),
          sum_(chunks_ * block_),
          target_logit_(block_),
          partial_(a.dh == nullptr ? 0 : groups_ * block_ * a.width),
          rows_(kConverts ? block_ * O::depth(a.width) : 0),
          row_panels_(a.dh == nullptr ? 0 : O::depth(block_) * padded_width_),
          own_size_(std::max(O::depth(a.width) * (kChunk + 1),
                             O::depth(kChunk) * padded_width_ + (kConverts ? (block_ + 1) * kChunk : 0))),
          own_(a.threads * own_size_) {}

    void run() {
        for (int64_t first = 0; first < a_.rows; first += block_) run_block(first, std::min(block_, a_.rows - first));
    }

  private:
    static int64_t padded(int64_t columns) { return (columns + kLanes - 1) / kLanes * kLanes; }

    int64_t width_of(int64_t chunk) const { return std::min(kChunk, a_.classes - chunk * kChunk); }

    T* own() const { return own_.get() + omp_get_thread_num() * own_size_; }

    S* logits_of(int64_t chunk) const {
        return logits_.get() + (a_.dh == nullptr ? omp_get_thread_num() : chunk) * block_ * kChunk;
    }

    void run_block(int64_t first, int64_t rows) {
#pragma omp parallel num_threads(a_.threads)
        {
            if constexpr (kConverts) {
                const int64_t depth = O::depth(a_.width);
#pragma omp for schedule(static)
                for (int64_t i = 0; i < rows; ++i)
                    O::along(a_.h + (first + i) * a_.width, a_.width, rows_.get() + i * depth);
            }
#pragma omp for schedule(dynamic, 1)
            for (int64_t chunk = 0; chunk < chunks_; ++chunk) score(chunk, first, rows);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < rows; ++i) finish_row(first, i);
            if (a_.dh != nullptr) {
#pragma omp for schedule(static)
                for (int64_t column = 0; column < padded_width_; column += kLanes)
                    pack_panel<O, S>({a_.h + first * a_.width, 1, a_.width}, column, a_.width, kLanes, rows, own(),
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

    // The chunk's logits, and what each row needs of them for its partition function.
    void score(int64_t chunk, int64_t first, int64_t rows) {
        const int64_t width = width_of(chunk), depth = O::depth(a_.width);
        T *panels = own(), *line = panels + depth * kChunk;
        for (int64_t column = 0; column < width; column += kLanes)
            pack_panel<O, S>({a_.weight + chunk * kChunk * a_.width, a_.width, 1}, column, width, kLanes, a_.width,
                             line, panels + column * depth);
        S* logits = logits_of(chunk);
        const S* bias = a_.bias == nullptr ? nullptr : a_.bias + chunk * kChunk;
        const T* left;
        if constexpr (kConverts)
            left = rows_.get();
        else
            left = a_.h + first * a_.width;
        const int64_t stride = kConverts ? depth : a_.width;
        for (int64_t i = 0; i < rows; i += kSumRows) {  // so few rows that their logits are still in the first cache
            const int64_t count = std::min<int64_t>(kSumRows, rows - i);
            multiply<kSumRows, kSumVectors>(left + i * stride, stride, 1, panels, depth, count, width, false,
                                            logits + i * kChunk, kChunk);
            for (int64_t r = i; r < i + count; ++r) {
                S* row = logits + r * kChunk;
                if (bias != nullptr)
                    for (int64_t c = 0; c < width; ++c) row[c] += bias[c];
                if (a_.softcap > S(0))
                    for (int64_t c = 0; c < width; ++c) row[c] = a_.softcap * tanh_vectorised(row[c] / a_.softcap);
                S top = -std::numeric_limits<S>::infinity(), sum = S(0);
#pragma omp simd reduction(max : top)
                for (int64_t c = 0; c < width; ++c) top = row[c] > top ? row[c] : top;
                const S shift = top > -std::numeric_limits<S>::infinity() ? top : S(0);  // -inf - -inf would be NaN
#pragma omp simd reduction(+ : sum)
                for (int64_t c = 0; c < width; ++c) sum += bounded_exp(row[c] - shift);
                top_.get()[chunk * block_ + r] = top;
                sum_.get()[chunk * block_ + r] = sum;
                const int64_t target = a_.targets[first + r] - chunk * kChunk;
                if (target >= 0 && target < width) target_logit_.get()[r] = row[target];
            }
        }
    }

    // Loss and partition function of a row from those of its chunks, in their order. A NaN in one of them stays.
    void finish_row(int64_t first, int64_t i) {
        S top = -std::numeric_limits<S>::infinity(), sum = S(0);
        for (int64_t chunk = 0; chunk < chunks_; ++chunk) top = std::max(top, top_.get()[chunk * block_ + i]);
        const S shift = top > -std::numeric_limits<S>::infinity() ? top : S(0);
        for (int64_t chunk = 0; chunk < chunks_; ++chunk)
            sum += sum_.get()[chunk * block_ + i] * bounded_exp(top_.get()[chunk * block_ + i] - shift);
        const int64_t row = first + i;
        a_.lse[row] = shift + std::log(sum);
        a_.loss[row] = a_.targets[row] == a_.ignore_index ? S(0) : a_.lse[row] - target_logit_.get()[i];
    }

    // The chunk's logits become their gradients; dweight's and dbias's rows of the chunk and its part of dh follow.
    void differentiate(int64_t chunk, int64_t first, int64_t rows, S* partial, bool add) {
        const int64_t width = width_of(chunk), begin = chunk * kChunk;
        S* logits = logits_of(chunk);
        for (int64_t r = 0; r < rows; ++r) {
            S* row = logits + r * kChunk;
            const int64_t target = a_.targets[first + r] - begin;
            const S scale = a_.targets[first + r] == a_.ignore_index ? S(0)
                            : a_.upstream == nullptr                 ? S(1)
                                                                     : a_.upstream[first + r];
            const S lse = a_.lse[first + r], cap = a_.softcap;
            const S capped = cap > S(0) && target >= 0 && target < width ? row[target] / cap : S(0);
            if (cap > S(0)) {
#pragma omp simd
                for (int64_t c = 0; c < width; ++c) {
                    const S ratio = row[c] / cap;
                    row[c] = bounded_exp(row[c] - lse) * scale * (S(1) - ratio * ratio);
                }
            } else {
#pragma omp simd
                for (int64_t c = 0; c < width; ++c) row[c] = bounded_exp(row[c] - lse) * scale;
            }
            if (target >= 0 && target < width) row[target] -= scale * (S(1) - capped * capped);
        }
        if (a_.dbias != nullptr) {
            S* dbias = a_.dbias + begin;
            if (first == 0) std::fill(dbias, dbias + width, S(0));
            for (int64_t r = 0; r < rows; ++r)
#pragma omp simd
                for (int64_t c = 0; c < width; ++c) dbias[c] += logits[r * kChunk + c];
        }
        // dh += gradients · weight
        const int64_t depth = O::depth(width);
        T* panels = own();
        T* left = panels + depth * padded_width_;  // gradients as operands, where those are not what they are
        for (int64_t column = 0; column < a_.width; column += kLanes)
            pack_panel<O, S>({a_.weight + begin * a_.width, 1, a_.width}, column, a_.width, kLanes, width, nullptr,
                             panels + column * depth);
        if constexpr (kConverts) {
            for (int64_t r = 0; r < rows; ++r) O::along(logits + r * kChunk, width, left + r * depth);
            multiply<kSumRows, kSumVectors>(left, depth, 1, panels, depth, rows, a_.width, add, partial, a_.width);
        } else {
            multiply<kSumRows, kSumVectors>(logits, kChunk, 1, panels, depth, rows, a_.width, add, partial, a_.width);
        }
        // dweight = gradientsᵀ · h
        S* dweight = a_.dweight + begin * a_.width;
        if constexpr (kConverts) {
            for (int64_t k = 0; k < O::depth(rows); ++k) O::across(logits, kChunk, k, rows, width, left + k * kChunk);
            multiply<kSumRows, kSumVectors>(left, 1, kChunk, row_panels_.get(), O::depth(rows), width, a_.width,
                                            first > 0, dweight, a_.width);
        } else {
            multiply<kSumRows, kSumVectors>(logits, 1, kChunk, row_panels_.get(), O::depth(rows), width, a_.width,
                                            first > 0, dweight, a_.width);
        }
    }

    const CrossEntropy<S>& a_;
    const int64_t chunks_, groups_, block_, padded_width_;
    Buffer<S> logits_;           // [chunk][row][kChunk], or one chunk for each thread
    Buffer<S> top_, sum_;        // [chunk][row]
    Buffer<S> target_logit_;     // [row]
    Buffer<S> partial_;          // [group][row][width] of dh
    Buffer<T> rows_;             // the block's rows of h as operands on the left
    Buffer<T> row_panels_;       // and on the right
    const int64_t own_size_;
    Buffer<T> own_;              // for each thread: a chunk's weights as panels, its gradients as operands
};

template <typename O, typename S>
void run(const CrossEntropy<S>& a) {
    if (a.rows > 0) Pass<O, S>(a).run();
    if (a.rows == 0 && a.dh != nullptr) {
        std::fill(a.dweight, a.dweight + a.classes * a.width, S(0));
        if (a.dbias != nullptr) std::fill(a.dbias, a.dbias + a.classes, S(0));
    }
}

}  // namespace

void cross_entropy_f32(const CrossEntropy<float>& a) { run<Operand<float, false>>(a); }
void cross_entropy_bf16(const CrossEntropy<float>& a) { run<Operand<float, true>>(a); }
void cross_entropy_f64(const CrossEntropy<double>& a) { run<Operand<double, false>>(a); }

}  // namespace fastseq::FASTSEQ_ISA
