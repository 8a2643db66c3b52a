#include "embed_sequence.h"

#include "bindings.h"
#include "norm.h"

namespace fastseq {
namespace {

// The items and positions of a table look-up, which is memory it must not leave.
template <typename T>
void check_lookups(const Array<int64_t>& items, const Array<int32_t>& positions, const Array<T>& item_weight,
                  const OptionalArray<T>& position_weight) {
    check_ids(items, "items", item_weight.shape(0));
    optional_data(position_weight, "position_weight", {-1, item_weight.shape(1)});
    if (position_weight) check_ids(positions, "positions", position_weight->shape(0));
}

// positions[row] of every row, once offsets, items and lengths have been checked.
void positions_of(const Array<int64_t>& items, const Array<int32_t>& offsets, int64_t n_items, int64_t n_positions,
                  Array<int32_t>& positions) {
    check_shape(items, "items", {-1});
    const int64_t rows = items.shape(0);
    check_shape(positions, "positions", {rows});
    const int32_t* offset = offsets.data();
    int32_t* position = positions.mutable_data();
    check_offsets(offsets, rows, n_positions < 0 ? INT32_MAX : n_positions);
    check_ids(items, "items", n_items);
    for (int64_t s = 0; s + 1 < offsets.shape(0); ++s) {
        const int32_t length = offset[s + 1] - offset[s];
        for (int32_t p = 0; p < length; ++p) position[offset[s] + p] = p;
    }
}

template <typename T>
void forward(const Array<int64_t>& items, const Array<int32_t>& positions, const Array<T>& item_weight,
             const OptionalArray<T>& position_weight, const OptionalArray<T>& norm_weight,
             const OptionalArray<T>& norm_bias, Array<T>& y, OptionalArray<T>& mean, OptionalArray<T>& rstd,
             double eps, double p, int64_t seed, int64_t step, uint32_t site, Threads threads) {
    check_shape(item_weight, "item_weight", {-1, -1});
    check_shape(items, "items", {-1});
    const int64_t rows = items.shape(0), width = item_weight.shape(1);
    check_shape(positions, "positions", {rows});
    check_shape(y, "y", {rows, width});
    const EmbedSequence<T> a{items.data(), positions.data(), item_weight.data(),
                             optional_data(position_weight, "position_weight", {-1, width}),
                             optional_data(norm_weight, "norm_weight", {width}),
                             optional_data(norm_bias, "norm_bias", {width}), y.mutable_data(),
                             optional_data(mean, "mean", {rows}), optional_data(rstd, "rstd", {rows}), rows, width,
                             static_cast<T>(eps), make_dropout(p, seed, step, site), threads};
    if (a.norm_weight && !(a.norm_bias && a.mean && a.rstd))
        throw py::value_error("norm_weight is given, expected norm_bias, mean and rstd too");
    check_lookups(items, positions, item_weight, position_weight);
    py::gil_scoped_release release;
    embed_sequence(a);
}

template <typename T>
void norm_backward(const Array<T>& grad, const Array<int64_t>& items, const Array<int32_t>& positions,
                   const Array<T>& item_weight, const OptionalArray<T>& position_weight, const Array<T>& norm_weight,
                   const Array<T>& mean, const Array<T>& rstd, Array<T>& de, Array<T>& dnorm_weight,
                   Array<T>& dnorm_bias, double p, int64_t seed, int64_t step, uint32_t site, Threads threads) {
    check_shape(item_weight, "item_weight", {-1, -1});
    check_shape(items, "items", {-1});
    const int64_t rows = items.shape(0), width = item_weight.shape(1);
    check_shapes({rows}, positions, "positions", mean, "mean", rstd, "rstd");
    check_shapes({rows, width}, grad, "grad", de, "de");
    check_shapes({width}, norm_weight, "norm_weight", dnorm_weight, "dnorm_weight", dnorm_bias, "dnorm_bias");
    check_lookups(items, positions, item_weight, position_weight);
    Array<T> partial(block_count(rows) * 3 * width);
    const EmbedSequenceNormBackward<T> a{
        grad.data(), items.data(), positions.data(), item_weight.data(),
        optional_data(position_weight, "position_weight", {-1, width}), norm_weight.data(), mean.data(), rstd.data(),
        de.mutable_data(), dnorm_weight.mutable_data(), dnorm_bias.mutable_data(), partial.mutable_data(), rows,
        width, make_dropout(p, seed, step, site), threads};
    py::gil_scoped_release release;
    embed_sequence_norm_backward(a);
}

template <typename T>
void scatter(const Array<T>& de, const Array<int64_t>& items, const Array<int32_t>& offsets, Array<T>& ditem,
             OptionalArray<T>& dposition, int64_t padding_idx, Threads threads) {
    check_shape(ditem, "ditem", {-1, -1});
    check_shape(items, "items", {-1});
    const int64_t rows = items.shape(0), width = ditem.shape(1);
    check_shape(de, "de", {rows, width});
    T* position_sums = optional_data(dposition, "dposition", {-1, width});
    check_offsets(offsets, rows, dposition ? dposition->shape(0) : INT32_MAX);
    check_ids(items, "items", ditem.shape(0));
    Array<int32_t> order(rows), scratch(rows + 1);
    const EmbedSequenceScatter<T> a{
        de.data(), items.data(), offsets.data(), ditem.mutable_data(),
        position_sums, order.mutable_data(), scratch.mutable_data(), rows,
        offsets.shape(0) - 1, ditem.shape(0), dposition ? static_cast<int64_t>(dposition->shape(0)) : 0, width,
        padding_idx, threads};
    py::gil_scoped_release release;
    embed_sequence_scatter(a);
}

}  // namespace

void bind_embed_sequence(py::module_& m) {
    define(m, "embed_sequence",
           {"items", "positions", "item_weight", "position_weight", "norm_weight", "norm_bias", "y", "mean", "rstd",
            "eps", "p", "seed", "step", "site", "threads"},
           "y = dropout(LayerNorm(item_weight[items] + position_weight[positions]))", &forward<float>,
           &forward<double>);
    define(m, "embed_sequence_norm_backward",
           {"grad", "items", "positions", "item_weight", "position_weight", "norm_weight", "mean", "rstd", "de",
            "dnorm_weight", "dnorm_bias", "p", "seed", "step", "site", "threads"},
           "The gradient of every row before the normalisation, and of the normalisation's vectors",
           &norm_backward<float>, &norm_backward<double>);
    define(m, "embed_sequence_scatter",
           {"de", "items", "offsets", "ditem", "dposition", "padding_idx", "threads"},
           "ditem (zero at first) and dposition: the rows of de summed per item and per position", &scatter<float>,
           &scatter<double>);
    define(m, "sequence_positions", {"items", "offsets", "n_items", "n_positions", "positions"},
           "positions[row], counted from the start of the row's sequence; checks items, offsets and lengths "
           "(n_positions -1: any length)",
           &positions_of);
}

}  // namespace fastseq
