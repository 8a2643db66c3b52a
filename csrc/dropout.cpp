// Dropout from the shared random stream: one read, one write, the mask never in memory.
#include "dropout.h"

#include "draw.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

}  // namespace

template <typename T>
void dropout(const T* x, T* y, int64_t rows, int64_t columns, const Dropout& dropout, int threads) {
    const int64_t groups = (columns + kWords - 1) / kWords;
    const T scale = static_cast<T>(dropout.scale);
    const uint32_t threshold = dropout.threshold;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t cell = 0; cell < rows * groups; ++cell) {
        const int64_t row = cell / groups, group = cell % groups, start = row * columns + group * kWords;
        alignas(64) uint32_t words[kWords];
        draw(dropout, group, row, words);
        const int width = static_cast<int>(columns - group * kWords < kWords ? columns - group * kWords : kWords);
#pragma omp simd
        for (int c = 0; c < width; ++c) y[start + c] = words[c] < threshold ? T(0) : x[start + c] * scale;
    }
}

FASTSEQ_INSTANTIATE(dropout)

}  // namespace fastseq::FASTSEQ_ISA
