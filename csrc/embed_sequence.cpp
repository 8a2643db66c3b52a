// dropout(LayerNorm(item + position)) for every event, and its gradients: per row first, then summed into the tables.
#include "embed_sequence.h"

#include "draw.h"
#include "norm.h"
#include "segments.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

template <typename T>
void add_row(T* __restrict__ sum, const T* __restrict__ row, int64_t width) {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) sum[c] += row[c];
}

}  // namespace

template <typename T>
void embed_sequence(const EmbedSequence<T>& a) {
    const int64_t width = a.width;
    const T scale = static_cast<T>(a.dropout.scale);
    const uint16_t threshold = a.dropout.threshold;
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int64_t row = 0; row < a.rows; ++row) {
        const T* item = a.item_weight + a.items[row] * width;
        const T* position = a.position_weight ? a.position_weight + a.positions[row] * width : nullptr;
        T* __restrict__ y = a.y + row * width;
        T sum = T(0);
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < width; ++c) {
            const T e = position ? item[c] + position[c] : item[c];
            y[c] = e;
            sum += e;
        }
        if (a.norm_weight) normalize(y, width, sum, a.eps, a.norm_weight, a.norm_bias, a.mean + row, a.rstd + row);
        if (threshold == 0) continue;
        for (int64_t first = 0; first < width; first += kDrawn) {
            alignas(64) uint16_t values[kDrawn];
            const int count = static_cast<int>(width - first < kDrawn ? width - first : kDrawn);
            draw(a.dropout, first, row, count, values);
#pragma omp simd
            for (int c = 0; c < count; ++c) {
                const T value = y[first + c] * scale;
                y[first + c] = values[c] < threshold ? T(0) : value;
            }
        }
    }
}

template <typename T>
void embed_sequence_norm_backward(const EmbedSequenceNormBackward<T>& a) {
    const int64_t width = a.width, size = block_rows(a.rows), blocks = block_count(a.rows);
    const T scale = static_cast<T>(a.dropout.scale);
    const uint16_t threshold = a.dropout.threshold;
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
        T* __restrict__ dweight = a.partial + block * 3 * width;
        T* __restrict__ dbias = dweight + width;
        T* __restrict__ g = dbias + width;  // the row's gradient behind dropout
        for (int64_t c = 0; c < 2 * width; ++c) dweight[c] = T(0);
        const int64_t last = (block + 1) * size < a.rows ? (block + 1) * size : a.rows;
        for (int64_t row = block * size; row < last; ++row) {
            const T mean = a.mean[row], rstd = a.rstd[row];
            const T* grad = a.grad + row * width;
            for (int64_t first = 0; first < width; first += kDrawn) {
                alignas(64) uint16_t values[kDrawn];
                const int count = static_cast<int>(width - first < kDrawn ? width - first : kDrawn);
                draw(a.dropout, first, row, count, values);
#pragma omp simd
                for (int c = 0; c < count; ++c) {
                    const T value = grad[first + c] * scale;
                    g[first + c] = values[c] < threshold ? T(0) : value;
                }
            }
            const T* item = a.item_weight + a.items[row] * width;
            const T* position = a.position_weight ? a.position_weight + a.positions[row] * width : nullptr;
            T* __restrict__ de = a.de + row * width;  // holds the normalised row until its two sums are known
            T sum = T(0), dot = T(0);
#pragma omp simd reduction(+ : sum, dot)
            for (int64_t c = 0; c < width; ++c) {
                const T normal = ((position ? item[c] + position[c] : item[c]) - mean) * rstd;
                const T gw = g[c] * a.norm_weight[c];
                de[c] = normal;
                sum += gw;
                dot += gw * normal;
                dweight[c] += g[c] * normal;
                dbias[c] += g[c];
            }
            sum /= static_cast<T>(width);
            dot /= static_cast<T>(width);
#pragma omp simd
            for (int64_t c = 0; c < width; ++c) de[c] = rstd * (g[c] * a.norm_weight[c] - sum - de[c] * dot);
        }
    }
    add_blocks(a.partial, blocks, 3 * width, a.dnorm_weight, width);
    add_blocks(a.partial + width, blocks, 3 * width, a.dnorm_bias, width);
}

template <typename T>
void embed_sequence_scatter(const EmbedSequenceScatter<T>& a) {
    const int64_t width = a.width;
    sort_by_key(a.items, a.rows, a.n_items, a.order, a.scratch);
    const int64_t segments = segment_starts(a.items, a.order, a.rows, a.scratch);
    // Segments differ in length, so threads take them as they come: each is summed in row order by one thread.
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, 16)
    for (int64_t segment = 0; segment < segments; ++segment) {
        const int64_t item = a.items[a.order[a.scratch[segment]]];
        if (item == a.padding_idx) continue;
        for (int64_t i = a.scratch[segment]; i < a.scratch[segment + 1]; ++i)
            add_row(a.ditem + item * width, a.de + a.order[i] * width, width);
    }
    if (!a.dposition) return;
    constexpr int64_t chunk = 8;  // positions a thread takes at a time: neighbouring rows of every sequence
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, 1)
    for (int64_t first = 0; first < a.n_positions; first += chunk) {
        const int64_t last = first + chunk < a.n_positions ? first + chunk : a.n_positions;
        for (int64_t c = first * width; c < last * width; ++c) a.dposition[c] = T(0);
        for (int64_t sequence = 0; sequence < a.sequences; ++sequence) {
            const int64_t start = a.offsets[sequence], length = a.offsets[sequence + 1] - start;
            const int64_t end = length < last ? length : last;
            for (int64_t p = first; p < end; ++p) add_row(a.dposition + p * width, a.de + (start + p) * width, width);
        }
    }
}

FASTSEQ_INSTANTIATE(embed_sequence)
FASTSEQ_INSTANTIATE(embed_sequence_norm_backward)
FASTSEQ_INSTANTIATE(embed_sequence_scatter)

}  // namespace fastseq::FASTSEQ_ISA
