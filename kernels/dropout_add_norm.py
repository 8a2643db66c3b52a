"""LayerNorm(residual + dropout(x + x_bias)): forward two reads and one write, backward three reads and two writes.

A program holds whole rows in registers, so mean and variance are two exact passes over them without touching memory
again. The backward makes the sum and its mask again from x and residual. The gradients of the vectors are summed on
the way: each program adds up its rows and writes one row of partial sums a vector, which are then added in order.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastseq.ops.philox import keep_scale, threshold

from . import philox
from .products import refuse_float64
from .rows import add_up, normalised_gradient, programs, statistics, tile
from .sizes import cdiv


@triton.jit
def _summed(
    x, residual, x_bias, rng, row, column, offset, inside, columns, threshold, scale, site,
    BIAS: tl.constexpr, DROPOUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """residual + dropout(x + x_bias) of a tile, and what dropout multiplies by: 0 or ``scale`` (1 without it)."""
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    factor = scale
    if BIAS:
        value += tl.load(x_bias + column, mask=column < columns, other=0.0).to(tl.float32)
    if DROPOUT:
        dropped = philox.dropped(rng, row, tl.arange(0, COLUMNS // 8)[None, :], site, threshold, ROWS, COLUMNS // 8)
        factor = tl.where(dropped, 0.0, scale)
        value = tl.where(dropped, 0.0, value * scale)  # not a product with 0: x may be infinite
    return value + tl.load(residual + offset, mask=inside, other=0.0).to(tl.float32), factor


@triton.jit(do_not_specialize=["rows", "site"])
def _forward(
    x, residual, weight, bias, x_bias, y, means, rstds, rng, rows, columns, eps, threshold, scale, site,
    BIAS: tl.constexpr, DROPOUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = index[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)
    offset = row * columns + column
    value, _ = _summed(
        x, residual, x_bias, rng, row, column, offset, inside, columns, threshold, scale, site,
        BIAS, DROPOUT, ROWS, COLUMNS,
    )  # fmt: skip
    mean, rstd, centred = statistics(value, column, columns, eps)
    tl.store(means + index, mean, mask=index < rows)
    tl.store(rstds + index, rstd, mask=index < rows)
    w = tl.load(weight + column, mask=column < columns, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)
    value = centred * rstd[:, None] * w + b
    tl.store(y + offset, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "site", "tiles"])
def _backward(
    grad, x, residual, weight, x_bias, means, rstds, dx, dresidual, partial, rng, rows, columns, tiles,
    threshold, scale, site,
    BIAS: tl.constexpr, DROPOUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program: ``tiles`` tiles, one below the other, and their rows of partial sums.

    partial is float32 [2 or 3, programs, columns]: gradients of weight, bias and, where BIAS, x_bias.
    """
    column = tl.arange(0, COLUMNS)[None, :]
    w = tl.load(weight + column, mask=column < columns, other=0.0).to(tl.float32)
    dweight = tl.zeros((ROWS, COLUMNS), tl.float32)
    dbias = tl.zeros((ROWS, COLUMNS), tl.float32)
    dx_bias = tl.zeros((ROWS, COLUMNS), tl.float32)
    for i in range(tiles):
        index = (tl.program_id(0).to(tl.int64) * tiles + i) * ROWS + tl.arange(0, ROWS)
        row = index[:, None]
        inside = (row < rows) & (column < columns)
        offset = row * columns + column
        value, factor = _summed(
            x, residual, x_bias, rng, row, column, offset, inside, columns, threshold, scale, site,
            BIAS, DROPOUT, ROWS, COLUMNS,
        )  # fmt: skip
        mean = tl.load(means + index, mask=index < rows, other=0.0)[:, None]
        rstd = tl.load(rstds + index, mask=index < rows, other=0.0)[:, None]
        normal = tl.where(inside, (value - mean) * rstd, 0.0)
        upstream = tl.load(grad + offset, mask=inside, other=0.0).to(tl.float32)
        dweight += upstream * normal
        dbias += upstream
        value = normalised_gradient(upstream * w, normal, rstd, column, columns)
        tl.store(dresidual + offset, value.to(dresidual.dtype.element_ty), mask=inside)
        value *= factor
        tl.store(dx + offset, value.to(dx.dtype.element_ty), mask=inside)
        if BIAS:
            dx_bias += value
    offset = tl.program_id(0) * columns + column
    stride = tl.num_programs(0) * columns
    tl.store(partial + offset, tl.sum(dweight, axis=0)[None, :], mask=column < columns)
    tl.store(partial + stride + offset, tl.sum(dbias, axis=0)[None, :], mask=column < columns)
    if BIAS:
        tl.store(partial + 2 * stride + offset, tl.sum(dx_bias, axis=0)[None, :], mask=column < columns)


def dropout_add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor | None,
    eps: float, p: float, rng: Tensor | None, site: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    refuse_float64(x, "x")
    source, rng = x.contiguous(), philox.adjacent(rng)
    rows, columns = math.prod(x.shape[:-1]), x.shape[-1]
    y = torch.empty_like(source)
    mean = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if y.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    height, width, warps = tile(columns)
    _forward[cdiv(rows, height),](
        source, residual.contiguous(), weight.contiguous(), bias.contiguous(),
        None if x_bias is None else x_bias.contiguous(), y, mean, rstd, rng, rows, columns, eps,
        threshold(p), keep_scale(p), site,
        BIAS=x_bias is not None, DROPOUT=p > 0.0, ROWS=height, COLUMNS=width, num_warps=warps,
    )  # fmt: skip
    return y, mean, rstd


def partial_gradients(
    grad: Tensor, x: Tensor, residual: Tensor, weight: Tensor, x_bias: Tensor | None, p: float, rng: Tensor | None,
    site: int, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x and residual; those of weight, bias and x_bias as float32 [2 or 3, rows, columns] to add up.
    x is not empty."""
    source, other, rng = x.contiguous(), residual.contiguous(), philox.adjacent(rng)
    rows, columns = math.prod(x.shape[:-1]), x.shape[-1]
    dx, dresidual = torch.empty_like(source), torch.empty_like(other)
    height, width, warps = tile(columns)
    count, tiles = programs(rows, height)
    partial = torch.empty((2 if x_bias is None else 3, count, columns), dtype=torch.float32, device=x.device)
    _backward[count,](
        grad.contiguous(), source, other, weight.contiguous(), None if x_bias is None else x_bias.contiguous(),
        mean.contiguous(), rstd.contiguous(), dx, dresidual, partial, rng, rows, columns, tiles,
        threshold(p), keep_scale(p), site,
        BIAS=x_bias is not None, DROPOUT=p > 0.0, ROWS=height, COLUMNS=width, num_warps=warps,
    )  # fmt: skip
    return dx, dresidual, partial


def dropout_add_norm_backward(
    grad: Tensor, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor | None,
    eps: float, p: float, rng: Tensor | None, site: int, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    vectors = [y for y in (weight, bias, x_bias) if y is not None]
    if x.numel() == 0:
        dx, dresidual = (torch.empty_like(y, memory_format=torch.contiguous_format) for y in (x, residual))
        sums = [torch.zeros_like(y) for y in vectors]
    else:
        dx, dresidual, partial = partial_gradients(grad, x, residual, weight, x_bias, p, rng, site, mean, rstd)
        sums = add_up(partial, *vectors)
    return dx, dresidual, sums[0], sums[1], x.new_empty(0) if x_bias is None else sums[2]
