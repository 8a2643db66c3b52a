// The dense layer and the loss with shared negatives behind a recurrence, with their gradients, in one pass over rows.
//
// A thread takes kBlock rows from hidden state to the gradient of the hidden state while they are in its caches: dense
// output, scores, loss, derivatives. Scores and their use are matrix products. What sums over rows (gradients of the layer
// and of the negatives) follows for a span of blocks, a tile of the result by one thread: spans, blocks and tiles do
// not depend on the number of threads, and nor does a bit of the result.
#include "gru_sampled_loss.h"

#include <omp.h>

#include "operand.h"
#include "sampled_loss_row.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

// Rows of a block; blocks of a span, and its scores unless those are too few.
constexpr int64_t kBlock = 4 * kSumRows, kFewestBlocks = 4, kMostBlocks = 20, kKept = 1 << 21;
constexpr int64_t kChunk = 128;              // negatives whose rows of the table stay in the first cache
constexpr int64_t kStrip = 4 * kColumnRows;  // rows of the gradients of the layer and of the negatives
constexpr int64_t kDepth = 10 * kBlock;      // rows summed at a time

template <typename T>
class Pass {
    using O = Operand<T, false>;
    static constexpr int64_t kLanes = kSumVectors * Simd<T>::lanes, kColumns = kColumnVectors * Simd<T>::lanes;

  public:
    explicit Pass(const DenseLoss<T>& a)
        : a_(a),
          in_(a.loss),
          count_(a.loss.count),
          span_(kBlock * std::clamp(kKept / std::max<int64_t>(count_, 1) / kBlock, kFewestBlocks, kMostBlocks)),
          hidden_(padded(a.hidden, kColumns)),
          width_(padded(in_.width, kLanes)),
          row_(count_ + kMargin + (count_ + kMargin == kLanes ? kMargin : 0)),
          copies_(a.rows != nullptr || hidden_ != a.hidden),
          columns_(a.hidden * width_),
          rows_(in_.width * padded(a.hidden, kLanes)),
          line_(a.threads * std::max(a.hidden, in_.width)),
          states_(copies_ ? span_ * hidden_ : 0),
          d_y_(span_ * in_.width),
          y_(span_ * width_),
          scores_(span_ * row_),
          negatives_(count_ * width_),
          negative_columns_(in_.width * padded(count_, kLanes)) {}

    void run() {
        const int64_t H = a_.hidden, width = in_.width;
#pragma omp parallel num_threads(a_.threads)
        {
            T* line = line_.get() + omp_get_thread_num() * std::max(H, width);
#pragma omp for schedule(static) nowait
            for (int64_t c = 0; c < width; c += kLanes)
                pack_panel<O, T>({a_.weight, H, 1}, c, width, kLanes, H, line, columns_.get() + c * H);
#pragma omp for schedule(static) nowait
            for (int64_t c = 0; c < H; c += kLanes)
                pack_panel<O, T>({a_.weight, 1, H}, c, H, kLanes, width, line, rows_.get() + c * width);
#pragma omp for schedule(static)
            for (int64_t j = 0; j < count_; ++j)
                copy(in_.table + in_.negatives[j] * width, width, negatives_.get() + j * width_, width_);
#pragma omp for schedule(static)
            for (int64_t c = 0; c < count_; c += kLanes)
                pack_panel<O, T>({negatives_.get(), width_, 1}, c, count_, kLanes, width, line,
                                 negative_columns_.get() + c * width);
            for (int64_t first = 0; first < in_.rows; first += span_) {
                const int64_t rows = std::min(span_, in_.rows - first);
                // one at the least: it has the bias's gradient
                const int64_t panels = std::max<int64_t>(1, (H + kColumns - 1) / kColumns);
#pragma omp for schedule(dynamic, 1)
                for (int64_t block = 0; block < rows; block += kBlock)
                    differentiate(first, block, std::min(kBlock, rows - block));
#pragma omp for schedule(dynamic, 1) nowait
                for (int64_t tile = 0; tile < (width + kStrip - 1) / kStrip * panels; ++tile)
                    add_weight_gradient(first, rows, tile / panels * kStrip, tile % panels * kColumns);
#pragma omp for schedule(dynamic, 1)
                for (int64_t j = 0; j < count_; j += kStrip)
                    add_product(scores() + j, row_, std::min(kStrip, count_ - j), y_.get(), width_, width, first, rows,
                                a_.d_negatives + j * width, width);
            }
        }
    }

  private:
    static constexpr int64_t kMargin = 64 / sizeof(T);  // before a row of scores: the target's stands there

    static int64_t padded(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

    static void copy(const T* from, int64_t count, T* to, int64_t padded) {
        std::copy(from, from + count, to);
        std::fill(to + count, to + padded, T(0));
    }

    T* scores() const { return scores_.get() + kMargin; }

    // Hidden states of the span that begins at row `first`, rows hidden_ apart.
    const T* states(int64_t first) const { return copies_ ? states_.get() : a_.h + first * a_.hidden; }

    void differentiate(int64_t first, int64_t block, int64_t rows) {
        const int64_t H = a_.hidden, width = in_.width, begin = first + block;
        for (int64_t r = 0; copies_ && r < rows; ++r)
            copy(a_.h + (a_.rows == nullptr ? begin + r : a_.rows[begin + r]) * H, H,
                 states_.get() + (block + r) * hidden_, hidden_);
        T *y = a_.y + begin * width, *d_y = d_y_.get() + block * width, *scores_of = scores() + block * row_;
        multiply<kSumRows, kSumVectors>(states(first) + block * hidden_, hidden_, 1, columns_.get(), H, kLanes, H, rows,
                                        width, false, y, width);
        for (int64_t r = 0; r < rows; ++r) add_scaled(y + r * width, T(1), a_.bias, width);
        for (int64_t r = 0; r < rows; ++r) copy(y + r * width, width, y_.get() + (block + r) * width_, width_);
        multiply<kSumRows, kSumVectors>(y, width, 1, negative_columns_.get(), width, kLanes, width, rows, count_, false,
                                        scores_of, row_);
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t i = begin + r;
            T *own = scores_of + r * row_, *grad = d_y + r * width;
            if (in_.targets[i] == a_.ignored) {
                a_.losses[i] = T(0);
                std::fill(own - 1, own + count_, T(0));
                std::fill(grad, grad + width, T(0));
            } else {
                a_.losses[i] = a_.scale * row_loss(in_, i, y + r * width, own, grad);
                if (a_.scale != T(1)) {
                    assign_scaled(own - 1, a_.scale, own - 1, count_ + 1);
                    assign_scaled(grad, a_.scale, grad, width);
                }
            }
            a_.d_scores[i] = own[-1];
        }
        for (int64_t j = 0; j < count_; j += kChunk)
            multiply<kSumRows, kSumVectors>(scores_of + j, row_, 1, negatives_.get() + j * width_, 1, width_,
                                            std::min(kChunk, count_ - j), rows, width, true, d_y, width);
        multiply<kSumRows, kSumVectors>(d_y, width, 1, rows_.get(), width, kLanes, width, rows, H, false,
                                        a_.d_h + begin * H, H);
    }

    // The sum over the span's rows of outer products of `count` columns of a and `columns` of b.
    static void add_product(const T* a, int64_t a_row, int64_t count, const T* b, int64_t b_row, int64_t columns,
                            int64_t first, int64_t rows, T* out, int64_t out_row) {
        for (int64_t r = 0; r < rows; r += kDepth)
            multiply<kColumnRows, kColumnVectors>(a + r * a_row, 1, a_row, b + r * b_row, 1, b_row,
                                                  std::min(kDepth, rows - r), count, columns, first + r > 0, out,
                                                  out_row);
    }

    // A tile of the layer's gradient, and with the first unit its part of the bias's.
    void add_weight_gradient(int64_t first, int64_t rows, int64_t column, int64_t unit) {
        const int64_t H = a_.hidden, width = in_.width, count = std::min(kStrip, width - column);
        const T* d_y = d_y_.get() + column;
        add_product(d_y, width, count, states(first) + unit, hidden_, std::min(kColumns, H - unit), first, rows,
                    a_.d_weight + column * H + unit, H);
        if (unit > 0) return;
        T* d_bias = a_.d_bias + column;
        if (first == 0) std::fill(d_bias, d_bias + count, T(0));
        for (int64_t r = 0; r < rows; ++r) add_scaled(d_bias, T(1), d_y + r * width, count);
    }

    const DenseLoss<T>& a_;
    const LossInputs<T>& in_;
    const int64_t count_, span_;
    const int64_t hidden_, width_;  // as right operands have them, in whole panels
    const int64_t row_;             // from row to row of scores: no power of two, whose lines evict each other
    const bool copies_;             // the hidden states: where they do not lie as the products need them
    Buffer<T> columns_, rows_;      // the layer's weight as panels of its rows and of its columns
    Buffer<T> line_;                // for each thread
    Buffer<T> states_, d_y_, y_, scores_;      // [row of the span][…]
    Buffer<T> negatives_, negative_columns_;  // rows of the table, and as panels
};

}  // namespace

template <typename T>
void gru_sampled_loss(const DenseLoss<T>& a) {
    if (a.loss.rows > 0) return Pass<T>(a).run();
    std::fill(a.d_weight, a.d_weight + a.loss.width * a.hidden, T(0));
    std::fill(a.d_bias, a.d_bias + a.loss.width, T(0));
    std::fill(a.d_negatives, a.d_negatives + a.loss.count * a.loss.width, T(0));
}

FASTSEQ_INSTANTIATE(gru_sampled_loss)

}  // namespace fastseq::FASTSEQ_ISA
