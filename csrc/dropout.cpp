// Dropout from the shared random stream: one read, one write, the mask never in memory.
#include "dropout.h"

namespace fastseq::FASTSEQ_ISA {
namespace {

template <typename T>
void dropout(const T* x, T* y, int64_t rows, int64_t columns, T scale, uint32_t threshold, const Rng& rng,
             uint32_t site, int threads) {
    const int64_t groups = (columns + kWords - 1) / kWords;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t cell = 0; cell < rows * groups; ++cell) {
        const int64_t row = cell / groups, group = cell % groups;
        alignas(64) uint32_t words[kWords];
        philox_group(rng, static_cast<uint32_t>(group), static_cast<uint32_t>(row), site, words);
        const int64_t start = row * columns + group * kWords;
        const int width = static_cast<int>(columns - group * kWords < kWords ? columns - group * kWords : kWords);
#pragma omp simd
        for (int c = 0; c < width; ++c) y[start + c] = words[c] < threshold ? T(0) : x[start + c] * scale;
    }
}

}  // namespace

void dropout_f32(const float* x, float* y, int64_t rows, int64_t columns, float scale, uint32_t threshold,
                 const Rng& rng, uint32_t site, int threads) {
    dropout(x, y, rows, columns, scale, threshold, rng, site, threads);
}

void dropout_f64(const double* x, double* y, int64_t rows, int64_t columns, double scale, uint32_t threshold,
                 const Rng& rng, uint32_t site, int threads) {
    dropout(x, y, rows, columns, scale, threshold, rng, site, threads);
}

}  // namespace fastseq::FASTSEQ_ISA
