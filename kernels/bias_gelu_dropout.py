"""dropout(gelu(x + bias)): forward one read and one write, backward two reads and one write.

Nothing is kept for the backward but x: z, Φ(z) and the mask are made again in registers. The gradient of the bias is
summed on the way: each program adds up its rows and writes one row of partial sums, which are then added in order.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastseq.ops.philox import keep_scale, threshold

from . import philox
from .elementary import normal_cdf
from .products import refuse_float64
from .rows import add_up
from .sizes import cdiv, next_power_of_2

# Elements of a tile, and its widest row: 8 elements a thread with 4 warps, so that 16-byte loads stay whole in every
# type and the eight values of a Philox call serve neighbouring elements.
TILE, WIDEST = 1024, 256
# Rows of partial sums of the bias gradient: enough programs for the largest chip with two column tiles, few enough
# that the sum over them is small. Fixed, so that bits do not depend on the chip.
PARTIALS = 512


@triton.jit(do_not_specialize=["rows", "site"])
def _forward(
    x, bias, y, rng, rows, columns, threshold, scale, site,
    DROPOUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)
    offset = row * columns + column
    z = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    z += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)
    value = z * normal_cdf(z)
    if DROPOUT:
        block = tl.program_id(1) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)[None, :]
        dropped = philox.dropped(rng, row, block, site, threshold, ROWS, COLUMNS // 8)
        value = tl.where(dropped, 0.0, value * scale)
    tl.store(y + offset, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "site", "tiles"])
def _backward(
    grad, x, bias, dx, partial, rng, rows, columns, tiles, threshold, scale, site,
    DROPOUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program: ``tiles`` tiles, one below the other, and their row of partial sums."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    block = tl.program_id(1) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)[None, :]
    shift = tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for i in range(tiles):
        row = (tl.program_id(0).to(tl.int64) * tiles + i) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column < columns)
        offset = row * columns + column
        z = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32) + shift
        slope = normal_cdf(z) + z * tl.exp(-0.5 * z * z) * 0.3989422804014327
        value = tl.load(grad + offset, mask=inside, other=0.0).to(tl.float32)
        if DROPOUT:
            dropped = philox.dropped(rng, row, block, site, threshold, ROWS, COLUMNS // 8)
            value = tl.where(dropped, 0.0, value * scale)
        value *= slope
        tl.store(dx + offset, value.to(dx.dtype.element_ty), mask=inside)
        total += tl.where(inside, value, 0.0)
    sums = tl.sum(total, axis=0)[None, :]
    tl.store(partial + tl.program_id(0) * columns + column, sums, mask=column < columns)


def _tile(columns: int) -> tuple[int, int]:
    """Rows and columns of a tile."""
    width = min(WIDEST, max(8, next_power_of_2(columns)))
    return TILE // width, width


def bias_gelu_dropout(x: Tensor, bias: Tensor, p: float, rng: Tensor | None, site: int) -> Tensor:
    refuse_float64(x, "x")
    source, rng = x.contiguous(), philox.adjacent(rng)
    rows, columns = math.prod(x.shape[:-1]), x.shape[-1]
    y = torch.empty_like(source)
    if y.numel() == 0:
        return y
    height, width = _tile(columns)
    _forward[cdiv(rows, height), cdiv(columns, width)](
        source, bias.contiguous(), y, rng, rows, columns, threshold(p), keep_scale(p), site,
        DROPOUT=p > 0.0, ROWS=height, COLUMNS=width,
    )  # fmt: skip
    return y


def partial_gradients(
    grad: Tensor, x: Tensor, bias: Tensor, p: float, rng: Tensor | None, site: int
) -> tuple[Tensor, Tensor]:
    """The gradient of x, which is not empty; that of bias as float32 [1, rows, columns] to add up."""
    source, rng = x.contiguous(), philox.adjacent(rng)
    rows, columns = math.prod(x.shape[:-1]), x.shape[-1]
    dx = torch.empty_like(source)
    height, width = _tile(columns)
    tiles = cdiv(cdiv(rows, height), PARTIALS)
    programs = cdiv(rows, height * tiles)
    partial = torch.empty((1, programs, columns), dtype=torch.float32, device=x.device)
    _backward[programs, cdiv(columns, width)](
        grad.contiguous(), source, bias.contiguous(), dx, partial, rng, rows, columns, tiles,
        threshold(p), keep_scale(p), site, DROPOUT=p > 0.0, ROWS=height, COLUMNS=width,
    )  # fmt: skip
    return dx, partial


def bias_gelu_dropout_backward(
    grad: Tensor, x: Tensor, bias: Tensor, p: float, rng: Tensor | None, site: int
) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format), torch.zeros_like(bias)
    dx, partial = partial_gradients(grad, x, bias, p, rng, site)
    return dx, add_up(partial, bias)[0]
