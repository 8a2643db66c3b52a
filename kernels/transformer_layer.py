"""A whole transformer layer as one node: the kernels of attention, dropout_add_norm and bias_gelu_dropout, and cuBLAS.

One node has no autograd between its parts: the gradient of a residual branch is what a product adds to, the projection
of queries, keys and values has one gradient, the rows that count are gathered and put back in one launch each, and the
partial sums of seven vectors' gradients are added up together.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import bias_gelu_dropout as gelu
from . import dropout_add_norm as norm
from .attention import causal_attention, packed_gradient
from .products import refuse_float64
from .rows import SUM_COLUMNS, SUM_ROWS, sum_rows
from .sizes import cdiv, next_power_of_2

# Elements of a tile of rows that are moved, and its widest row.
TILE, WIDEST = 1024, 256
# Up to so many events the gradient of the bias of queries, keys and values is added up beside the partial sums, by so
# many rows at a time: more would wait for the few programs that do it. Not yet measured.
EVENTS, BIAS_ROWS = 4096, 256


@triton.jit(do_not_specialize=["count", "size"])
def _gather(first, second, rows, to_first, to_second, count, size, columns, ROWS: tl.constexpr,
            COLUMNS: tl.constexpr):  # fmt: skip
    """Rows ``rows`` [count] of two tensors of ``size`` rows; NaN for what is none of them."""
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = tl.load(rows + index, mask=index < count, other=0)
    inside = (index < count)[:, None] & (column < columns)
    source, target = row[:, None] * columns + column, index.to(tl.int64)[:, None] * columns + column
    known = inside & ((row >= 0) & (row < size))[:, None]
    tl.store(to_first + target, tl.load(first + source, mask=known, other=float("nan")), mask=inside)
    tl.store(to_second + target, tl.load(second + source, mask=known, other=float("nan")), mask=inside)


@triton.jit(do_not_specialize=["count", "halvings", "size"])
def _spread(first, second, rows, to_first, to_second, count, halvings, size, columns, ROWS: tl.constexpr,
            COLUMNS: tl.constexpr):  # fmt: skip
    """The converse: ``size`` rows, zero where ``rows``, which ascend, name none; of repeats the first one's.
    2 ** halvings > count."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    low = tl.zeros((ROWS,), tl.int32)
    high = low + count
    for _ in range(halvings):
        middle = (low + high) // 2
        less = tl.load(rows + middle, mask=middle < high, other=0x7FFFFFFF) < row
        low = tl.where(less, middle + 1, low)
        high = tl.where(less, high, middle)
    hit = (low < count) & (tl.load(rows + low, mask=low < count, other=-1) == row)
    source, target = low.to(tl.int64)[:, None] * columns + column, row[:, None] * columns + column
    read, inside = hit[:, None] & (column < columns), (row < size)[:, None] & (column < columns)
    tl.store(to_first + target, tl.load(first + source, mask=read, other=0.0), mask=inside)
    tl.store(to_second + target, tl.load(second + source, mask=read, other=0.0), mask=inside)


@triton.jit(do_not_specialize=["norm_rows", "inner_rows", "events"])
def _vectors(
    norm1, norm2, inner, packed, norm1_weight, norm1_bias, out_bias, norm2_weight, norm2_bias, bias2, bias1, in_bias,
    norm_rows, inner_rows, events, columns, inner_columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BIAS_ROWS: tl.constexpr,
):  # fmt: skip
    """Adds up the partial sums norm1 and norm2 [3, norm_rows, columns] and inner [inner_rows, inner_columns], and
    perhaps the rows of packed [events, 3 columns]: each program some columns of one vector."""
    vector = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    if vector < 6:
        source = tl.where(vector < 3, norm1, norm2) + vector % 3 * norm_rows * columns
        sums = sum_rows(source, norm_rows, columns, column, ROWS, COLUMNS)
        if vector == 0:
            tl.store(norm1_weight + column, sums.to(norm1_weight.dtype.element_ty), mask=column < columns)
        elif vector == 1:
            tl.store(norm1_bias + column, sums.to(norm1_bias.dtype.element_ty), mask=column < columns)
        elif vector == 2:
            tl.store(out_bias + column, sums.to(out_bias.dtype.element_ty), mask=column < columns)
        elif vector == 3:
            tl.store(norm2_weight + column, sums.to(norm2_weight.dtype.element_ty), mask=column < columns)
        elif vector == 4:
            tl.store(norm2_bias + column, sums.to(norm2_bias.dtype.element_ty), mask=column < columns)
        else:
            tl.store(bias2 + column, sums.to(bias2.dtype.element_ty), mask=column < columns)
    elif vector == 6:
        sums = sum_rows(inner, inner_rows, inner_columns, column, ROWS, COLUMNS)
        tl.store(bias1 + column, sums.to(bias1.dtype.element_ty), mask=column < inner_columns)
    else:
        sums = sum_rows(packed, events, 3 * columns, column, BIAS_ROWS, COLUMNS)
        tl.store(in_bias + column, sums.to(in_bias.dtype.element_ty), mask=column < 3 * columns)


def _moved(columns: int) -> tuple[int, int]:
    """Rows and columns of a tile of rows that are moved."""
    width = min(WIDEST, next_power_of_2(columns))
    return TILE // width, width


def transformer_layer(
    x: Tensor, offsets: Tensor, rows: Tensor | None, in_weight: Tensor, in_bias: Tensor, out_weight: Tensor,
    out_bias: Tensor, norm1_weight: Tensor, norm1_bias: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor,
    bias2: Tensor, norm2_weight: Tensor, norm2_bias: Tensor, heads: int, max_len: int, eps: float, p: float,
    rng: Tensor | None, site: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    refuse_float64(x, "x")
    x, (size, width) = x.contiguous(), x.shape
    scale = 1.0 / math.sqrt(width // heads)
    packed = torch.addmm(in_bias, x, in_weight.t()).view(size, 3, heads, width // heads)
    mixed, lse = causal_attention(*packed.unbind(1), offsets, max_len, p, rng, site, scale)
    counted, residual = x.new_empty(2, 0, width)
    ours, other = mixed.view(size, width), x
    if rows is not None:
        counted, residual = (x.new_empty(rows.shape[0], width) for _ in range(2))
        if counted.numel() > 0:
            height, across = _moved(width)
            _gather[cdiv(rows.shape[0], height), cdiv(width, across)](
                ours, x, rows.contiguous(), counted, residual, rows.shape[0], size, width, ROWS=height, COLUMNS=across
            )
        ours, other = counted, residual
    projected = torch.mm(ours, out_weight.t())
    y1, *stats1 = norm.dropout_add_norm(projected, other, norm1_weight, norm1_bias, out_bias, eps, p, rng, site + 1)
    hidden = torch.mm(y1, weight1.t())
    inner = gelu.bias_gelu_dropout(hidden, bias1, p, rng, site + 2)
    outer = torch.mm(inner, weight2.t())
    y, *stats2 = norm.dropout_add_norm(outer, y1, norm2_weight, norm2_bias, bias2, eps, p, rng, site + 3)
    return y, packed, mixed, lse, counted, residual, projected, *stats1, y1, hidden, inner, outer, *stats2


def transformer_layer_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    x, offsets, rows, *weights = arguments[:15]
    heads, max_len, _, p, rng, site = arguments[15:21]
    in_weight, _, out_weight, out_bias, norm1_weight, norm1_bias, weight1, bias1, weight2, bias2, *norm2 = weights
    packed, mixed, lse, counted, residual, projected, mean1, rstd1 = arguments[21:29]
    y1, hidden, inner, outer, mean2, rstd2 = arguments[29:]
    if grad.numel() == 0:
        return tuple(torch.zeros_like(a, memory_format=torch.contiguous_format) for a in (x, *weights))
    x, (size, width) = x.contiguous(), x.shape
    d_outer, d_y1, sums2 = norm.partial_gradients(grad, outer, y1, norm2[0], bias2, p, rng, site + 3, mean2, rstd2)
    d_weight2 = torch.mm(d_outer.t(), inner)
    d_hidden, sums1 = gelu.partial_gradients(torch.mm(d_outer, weight2), hidden, bias1, p, rng, site + 2)
    d_weight1 = torch.mm(d_hidden.t(), y1)
    d_y1.addmm_(d_hidden, weight1)
    other = x if rows is None else residual
    d_projected, d_x, sums0 = norm.partial_gradients(
        d_y1, projected, other, norm1_weight, out_bias, p, rng, site + 1, mean1, rstd1
    )
    d_out_weight = torch.mm(d_projected.t(), mixed.view(size, width) if rows is None else counted)
    d_mixed = torch.mm(d_projected, out_weight)
    if rows is not None:
        ours, theirs, (d_mixed, d_x) = d_mixed, d_x, (torch.empty_like(x) for _ in range(2))
        height, across = _moved(width)
        _spread[cdiv(size, height), cdiv(width, across)](
            ours, theirs, rows.contiguous(), d_mixed, d_x, rows.shape[0], rows.shape[0].bit_length(), size, width,
            ROWS=height, COLUMNS=across,
        )  # fmt: skip
    d_packed = packed_gradient(
        d_mixed.view(mixed.shape), packed, offsets, max_len, p, rng, site, 1.0 / math.sqrt(width // heads), mixed, lse
    ).view(size, 3 * width)
    d_in_weight = torch.mm(d_packed.t(), x)
    d_x.addmm_(d_packed, in_weight)
    few = size <= EVENTS
    vectors = (norm1_weight, norm1_bias, out_bias, *norm2, bias2, bias1)
    sums = [torch.empty_like(a, memory_format=torch.contiguous_format) for a in vectors]
    d_norm1_weight, d_norm1_bias, d_out_bias, d_norm2_weight, d_norm2_bias, d_bias2, d_bias1 = sums
    d_in_bias = torch.empty_like(d_packed[0]) if few else d_packed.sum(0)
    _vectors[cdiv(max(3 * width if few else width, bias1.shape[0]), SUM_COLUMNS), 8 if few else 7](
        sums0, sums2, sums1, d_packed, *sums, d_in_bias, sums0.shape[1], sums1.shape[1], size, width, bias1.shape[0],
        ROWS=SUM_ROWS, COLUMNS=SUM_COLUMNS, BIAS_ROWS=BIAS_ROWS,
    )  # fmt: skip
    return (
        d_x, d_in_weight, d_in_bias, d_out_weight, d_out_bias, d_norm1_weight, d_norm1_bias, d_weight1, d_bias1,
        d_weight2, d_bias2, d_norm2_weight, d_norm2_bias,
    )  # fmt: skip
