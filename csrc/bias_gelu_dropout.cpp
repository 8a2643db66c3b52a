// dropout(gelu(x + bias)) in one read and one write; the backward draws the mask and computes the argument anew.
#include "bias_gelu_dropout.h"

#include "draw.h"
#include "erf.h"
#include "norm.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

}  // namespace

template <typename T>
void bias_gelu_dropout(const BiasGeluDropout<T>& a) {
    const int64_t width = a.width;
    const T scale = static_cast<T>(a.dropout.scale);
    const uint16_t threshold = a.dropout.threshold;
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int64_t row = 0; row < a.rows; ++row)
        for (int64_t first = 0; first < width; first += kDrawn) {
            alignas(64) uint16_t values[kDrawn];
            const int count = static_cast<int>(width - first < kDrawn ? width - first : kDrawn);
            draw(a.dropout, first, row, count, values);
            const T *__restrict__ x = a.x + row * width + first, *__restrict__ bias = a.bias + first;
            T* __restrict__ y = a.y + row * width + first;
#pragma omp simd
            for (int c = 0; c < count; ++c) {
                const T value = gelu(x[c] + bias[c]) * scale;
                y[c] = values[c] < threshold ? T(0) : value;
            }
        }
}

template <typename T>
void bias_gelu_dropout_backward(const BiasGeluDropoutBackward<T>& a) {
    const int64_t width = a.width, size = block_rows(a.rows), blocks = block_count(a.rows);
    const T scale = static_cast<T>(a.dropout.scale);
    const uint16_t threshold = a.dropout.threshold;
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        T* partial = a.partial + block * width;
        for (int64_t c = 0; c < width; ++c) partial[c] = T(0);
        const int64_t last = (block + 1) * size < a.rows ? (block + 1) * size : a.rows;
        for (int64_t row = block * size; row < last; ++row)
            for (int64_t first = 0; first < width; first += kDrawn) {
                alignas(64) uint16_t values[kDrawn];
                const int count = static_cast<int>(width - first < kDrawn ? width - first : kDrawn);
                draw(a.dropout, first, row, count, values);
                const T *__restrict__ x = a.x + row * width + first, *__restrict__ bias = a.bias + first;
                const T* __restrict__ grad = a.grad + row * width + first;
                T *__restrict__ dx = a.dx + row * width + first, *__restrict__ dbias = partial + first;
#pragma omp simd
                for (int c = 0; c < count; ++c) {
                    const T value = grad[c] * scale * gelu_derivative(x[c] + bias[c]);
                    const T kept = values[c] < threshold ? T(0) : value;
                    dx[c] = kept;
                    dbias[c] += kept;
                }
            }
    }
    add_blocks(a.partial, blocks, width, a.dbias, width);
}

FASTSEQ_INSTANTIATE(bias_gelu_dropout)
FASTSEQ_INSTANTIATE(bias_gelu_dropout_backward)

}  // namespace fastseq::FASTSEQ_ISA
