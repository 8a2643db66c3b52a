// Sampled losses straight from hidden states, the item table and ids: one pass over the rows gives the loss, its
// gradient with respect to every score and to h, and no gathered [rows, count, width] tensor exists.
#include "sampled_loss.h"

#include "sampled_loss_row.h"

namespace fastseq::FASTSEQ_ISA {

template <typename T>
void sampled_loss(const LossInputs<T>& in, T* loss, T* grad_h, T* grad_scores, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < in.rows; ++i)
        loss[i] = row_loss(in, i, in.h + i * in.width, grad_scores + i * (in.count + 1) + 1, grad_h + i * in.width);
}

template <typename T>
void sum_by_id(const int64_t* starts, const int32_t* rows, const T* coefficients, const T* source, int64_t ids,
               int64_t width, T* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 256)
    for (int64_t id = 0; id < ids; ++id) {
        T* sum = out + id * width;
        int64_t e = starts[id];
        const int64_t stop = starts[id + 1];
        if (e == stop) {
            for (int64_t c = 0; c < width; ++c) sum[c] = T(0);
            continue;
        }
        assign_scaled(sum, coefficients[e], source + rows[e] * width, width);
        for (++e; e < stop; ++e) add_scaled(sum, coefficients[e], source + rows[e] * width, width);
    }
}

FASTSEQ_INSTANTIATE(sampled_loss)
FASTSEQ_INSTANTIATE(sum_by_id)

}  // namespace fastseq::FASTSEQ_ISA
