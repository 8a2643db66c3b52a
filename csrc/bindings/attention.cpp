#include "attention.h"

#include <algorithm>
#include <memory>
#include <new>
#include <numeric>

#include <vector>

#include "bindings.h"

namespace fastseq {
namespace {

struct AlignedDelete {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};

// Scratch memory for all threads, each part on cache lines of its own.
template <typename T>
class Scratch {
   public:
    Scratch(int64_t size, int threads)
        : size_((size + 15) / 16 * 16),
          memory_(::operator new(static_cast<size_t>(size_ * threads) * sizeof(T), std::align_val_t(64))) {}
    void lend(AttentionTensors<T>& x) const {
        x.scratch = static_cast<T*>(memory_.get());
        x.scratch_size = size_;
    }

   private:
    int64_t size_;  // elements of one thread
    std::unique_ptr<void, AlignedDelete> memory_;
};

// x [rows, heads, width] with rows any distance apart, as a slice of a joint projection has them.
template <typename T>
HeadRows<T> head_rows(const StridedArray<T>& array, const char* name, int64_t rows, int64_t heads, int64_t width) {
    check_shape(array, name, {rows, heads, width});
    const int64_t item = sizeof(T);
    if (rows * heads * width > 0 && ((width > 1 && array.strides(2) != item) ||
                                     (heads > 1 && array.strides(1) != width * item) || array.strides(0) % item != 0))
        throw py::value_error(std::string(name) + " must be contiguous in its last two dimensions");
    return {array.data(), array.strides(0) / item};
}

// The batch and what it owns: offsets checked, sequences in order of length.
struct Batch : AttentionBatch {
    Batch(const Array<int32_t>& offsets_, int64_t rows, int64_t heads_, int64_t width_, int64_t max_len, double p_,
          int64_t seed, int64_t step, uint32_t site_, double scale_, Threads threads_)
        : AttentionBatch{offsets_.size() - 1, heads_, width_, offsets_.data(), nullptr, scale_,
                         make_dropout(p_, seed, step, site_), threads_} {
        check_offsets(offsets_, rows, max_len);
        if (width < 1) throw py::value_error("q.shape[2] is 0, expected at least 1");
        for (int64_t b = 0; b < sequences; ++b) longest = std::max<int64_t>(longest, offsets[b + 1] - offsets[b]);
        by_length.resize(static_cast<size_t>(sequences));
        std::iota(by_length.begin(), by_length.end(), 0);
        std::stable_sort(by_length.begin(), by_length.end(), [this](int32_t a, int32_t b) {
            return offsets[a + 1] - offsets[a] > offsets[b + 1] - offsets[b];
        });
        order = by_length.data();
    }
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

    int64_t longest = 0;

   private:
    std::vector<int32_t> by_length;
};

// q, k and v checked against the batch; `queries` is the number of rows of q.
template <typename T>
AttentionTensors<T> inputs(const StridedArray<T>& q, const StridedArray<T>& k, const StridedArray<T>& v, int64_t queries) {
    const int64_t heads = q.shape(1), width = q.shape(2), rows = k.shape(0);
    AttentionTensors<T> x{};
    x.q = head_rows(q, "q", queries, heads, width);
    x.k = head_rows(k, "k", rows, heads, width);
    x.v = head_rows(v, "v", rows, heads, width);
    return x;
}

template <bool kLast, typename T>
void forward(const StridedArray<T>& q, const StridedArray<T>& k, const StridedArray<T>& v, Array<T>& out,
             Array<T>& lse, const Array<int32_t>& offsets, int64_t max_len, double p, int64_t seed, int64_t step,
             uint32_t site, double scale, Threads threads) {
    check_shape(q, "q", {-1, -1, -1});
    check_shape(k, "k", {-1, q.shape(1), q.shape(2)});
    const int64_t heads = q.shape(1), width = q.shape(2), rows = k.shape(0);
    const Batch batch(offsets, rows, heads, width, max_len, p, seed, step, site, scale, threads);
    const int64_t queries = kLast ? batch.sequences : rows;
    AttentionTensors<T> x = inputs(q, k, v, queries);
    check_shape(out, "out", {queries, heads, width});
    check_shape(lse, "lse", {queries, heads});
    x.out = out.mutable_data();
    x.lse = lse.mutable_data();
    py::gil_scoped_release release;
    const Scratch<T> scratch(
        kLast ? last_query_scratch(batch.longest) : attention_scratch(batch.longest, width), batch.threads);
    scratch.lend(x);
    if constexpr (kLast)
        last_query_attention(batch, x);
    else
        causal_attention(batch, x);
}

template <bool kLast, typename T>
void backward(const Array<T>& grad, const StridedArray<T>& q, const StridedArray<T>& k, const StridedArray<T>& v,
              const Array<T>& lse, Array<T>& grad_q, Array<T>& grad_k, Array<T>& grad_v,
              const Array<int32_t>& offsets, int64_t max_len, double p, int64_t seed, int64_t step, uint32_t site,
              double scale, Threads threads) {
    check_shape(q, "q", {-1, -1, -1});
    check_shape(k, "k", {-1, q.shape(1), q.shape(2)});
    const int64_t heads = q.shape(1), width = q.shape(2), rows = k.shape(0);
    const Batch batch(offsets, rows, heads, width, max_len, p, seed, step, site, scale, threads);
    const int64_t queries = kLast ? batch.sequences : rows;
    AttentionTensors<T> x = inputs(q, k, v, queries);
    check_shapes({queries, heads, width}, grad, "grad", grad_q, "grad_q");
    check_shape(lse, "lse", {queries, heads});
    check_shapes({rows, heads, width}, grad_k, "grad_k", grad_v, "grad_v");
    x.grad = grad.data();
    x.saved_lse = lse.data();
    x.grad_q = grad_q.mutable_data();
    x.grad_k = grad_k.mutable_data();
    x.grad_v = grad_v.mutable_data();
    py::gil_scoped_release release;
    const Scratch<T> scratch(
        kLast ? last_query_scratch(batch.longest) : attention_backward_scratch(batch.longest, width),
        batch.threads);
    scratch.lend(x);
    if constexpr (kLast)
        last_query_attention_backward(batch, x);
    else
        causal_attention_backward(batch, x);
}

template <bool kLast>
void bind(py::module_& m, const char* name, const char* backward_name) {
    define(m, name,
           {"q", "k", "v", "out", "lse", "offsets", "max_len", "p", "seed", "step", "site", "scale", "threads"},
           "Writes out, like q, and lse [rows of q, heads]", &forward<kLast, float>, &forward<kLast, double>);
    define(m, backward_name,
           {"grad", "q", "k", "v", "lse", "grad_q", "grad_k", "grad_v", "offsets", "max_len", "p", "seed", "step",
            "site", "scale", "threads"},
           "Writes grad_q, grad_k and grad_v, like q, k and v", &backward<kLast, float>, &backward<kLast, double>);
}

}  // namespace

void bind_attention(py::module_& m) {
    bind<false>(m, "causal_attention", "causal_attention_backward");
    bind<true>(m, "last_query_attention", "last_query_attention_backward");
}

}  // namespace fastseq
