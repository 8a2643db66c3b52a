// Dropout from the shared random stream: one read, one write, the mask never in memory.
#include "dropout.h"

#include "draw.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

}  // namespace

template <typename T>
void dropout(const T* x, T* y, int64_t rows, int64_t columns, const Dropout& dropout, int threads) {
    const int64_t groups = (columns + kDrawn - 1) / kDrawn;
    const T scale = static_cast<T>(dropout.scale);
    const uint16_t threshold = dropout.threshold;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t cell = 0; cell < rows * groups; ++cell) {
        const int64_t row = cell / groups, first = cell % groups * kDrawn, start = row * columns + first;
        alignas(64) uint16_t values[kDrawn];
        const int width = static_cast<int>(columns - first < kDrawn ? columns - first : kDrawn);
        draw(dropout, first, row, width, values);
#pragma omp simd
        for (int c = 0; c < width; ++c) {
            const T value = x[start + c] * scale;
            y[start + c] = values[c] < threshold ? T(0) : value;
        }
    }
}

FASTSEQ_INSTANTIATE(dropout)

}  // namespace fastseq::FASTSEQ_ISA
