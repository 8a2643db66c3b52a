// LayerNorm(residual + dropout(x + x_bias)): each matrix is read once and written once, the mask is drawn anew.
#include "dropout_add_norm.h"

#include "draw.h"
#include "norm.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

constexpr int kPart = 64;  // columns that are summed together; it fixes the order of the sums

}  // namespace

template <typename T>
void dropout_add_norm(const DropoutAddNorm<T>& a) {
    const int64_t width = a.width;
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int64_t row = 0; row < a.rows; ++row) {
        T* __restrict__ y = a.y + row * width;
        T sum = T(0);
        draw_factors(a.dropout, row, width, y);
        for (int64_t first = 0; first < width; first += kPart) {
            const int count = static_cast<int>(width - first < kPart ? width - first : kPart);
            const T *x = a.x + row * width + first, *residual = a.residual + row * width + first;
            const T* x_bias = a.x_bias ? a.x_bias + first : nullptr;
            T part = T(0);
#pragma omp simd reduction(+ : part)
            for (int c = 0; c < count; ++c) {
                const T branch = x_bias ? x[c] + x_bias[c] : x[c];
                const T factor = y[first + c];
                const T s = residual[c] + (factor == T(0) ? T(0) : branch * factor);
                y[first + c] = s;
                part += s;
            }
            sum += part;
        }
        normalize(y, width, sum, a.eps, a.weight, a.bias, a.mean + row, a.rstd + row);
    }
}

template <typename T>
void dropout_add_norm_backward(const DropoutAddNormBackward<T>& a) {
    const int64_t width = a.width, size = block_rows(a.rows), blocks = block_count(a.rows);
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        T* __restrict__ dweight = a.partial + block * 3 * width;
        T* __restrict__ dbias = dweight + width;
        T* __restrict__ dx_bias = dbias + width;
        for (int64_t c = 0; c < 3 * width; ++c) dweight[c] = T(0);
        const int64_t last = (block + 1) * size < a.rows ? (block + 1) * size : a.rows;
        for (int64_t row = block * size; row < last; ++row) {
            const T mean = a.mean[row], rstd = a.rstd[row];
            const T* grad = a.grad + row * width;
            // Until the row's two sums are known, dx holds what dropout multiplies by and dresidual the normalised row.
            T* __restrict__ dx = a.dx + row * width;
            T* __restrict__ dresidual = a.dresidual + row * width;
            T sum = T(0), dot = T(0);
            draw_factors(a.dropout, row, width, dx);
            for (int64_t first = 0; first < width; first += kPart) {
                const int count = static_cast<int>(width - first < kPart ? width - first : kPart);
                const T *x = a.x + row * width + first, *residual = a.residual + row * width + first;
                const T* x_bias = a.x_bias ? a.x_bias + first : nullptr;
                const T *g = grad + first, *weight = a.weight + first;
                T sum_part = T(0), dot_part = T(0);
#pragma omp simd reduction(+ : sum_part, dot_part)
                for (int c = 0; c < count; ++c) {
                    const T branch = x_bias ? x[c] + x_bias[c] : x[c];
                    const T factor = dx[first + c];
                    const T s = residual[c] + (factor == T(0) ? T(0) : branch * factor);
                    const T normal = (s - mean) * rstd, gw = g[c] * weight[c];
                    dresidual[first + c] = normal;
                    sum_part += gw;
                    dot_part += gw * normal;
                }
                sum += sum_part;
                dot += dot_part;
            }
            sum /= static_cast<T>(width);
            dot /= static_cast<T>(width);
#pragma omp simd
            for (int64_t c = 0; c < width; ++c) {
                const T normal = dresidual[c];
                const T ds = rstd * (grad[c] * a.weight[c] - sum - normal * dot);
                const T branch = ds * dx[c];
                dresidual[c] = ds;
                dx[c] = branch;
                dweight[c] += grad[c] * normal;
                dbias[c] += grad[c];
                dx_bias[c] += branch;
            }
        }
    }
    add_blocks(a.partial, blocks, 3 * width, a.dweight, width);
    add_blocks(a.partial + width, blocks, 3 * width, a.dbias, width);
    if (a.dx_bias) add_blocks(a.partial + 2 * width, blocks, 3 * width, a.dx_bias, width);
}

FASTSEQ_INSTANTIATE(dropout_add_norm)
FASTSEQ_INSTANTIATE(dropout_add_norm_backward)

}  // namespace fastseq::FASTSEQ_ISA
