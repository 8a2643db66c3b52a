"""Whole rows in registers: layer normalisation, forward and backward, the tile that holds them, and partial sums."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sizes import cdiv, next_power_of_2

# Elements of a tile of whole rows (one row, where it is wider), and elements a warp: 8 a thread.
TILE, WARP = 1024, 256
# Columns of a row at most: 64 values a thread with 16 warps.
WIDEST = 32768
# Rows of a tile at most: more, of a narrow width, are more statistics and positions than a thread has registers for.
MOST_ROWS = 16
# Rows of partial sums of the gradients of vectors: enough programs to fill the largest chip, few enough that the sum
# over them is small. Fixed, so that bits do not depend on the chip.
PARTIALS = 512
# Tile of the sum over them: 8 elements a thread.
SUM_ROWS, SUM_COLUMNS = 32, 32


@triton.jit
def statistics(value, column, columns, eps):
    """Mean and 1 / sqrt(variance + eps) of rows [ROWS, COLUMNS] that are zero outside, and the centred rows.

    Divisions are rounded correctly, so that a constant row has variance 0 wherever its sum is exact.
    """
    width = tl.cast(columns, tl.float32)  # columns has no .to where it is 1, a constant
    mean = tl.div_rn(tl.sum(value, axis=1), width)
    centred = tl.where(column < columns, value - mean[:, None], 0.0)
    variance = tl.div_rn(tl.sum(centred * centred, axis=1), width)
    return mean, tl.rsqrt(variance + eps), centred


@triton.jit
def normalised_gradient(value, normal, rstd, column, columns):
    """The gradient of LayerNorm's input from that of its normalised rows; both [ROWS, COLUMNS], zero outside."""
    width = tl.cast(columns, tl.float32)
    mean = tl.div_rn(tl.sum(value, axis=1), width)[:, None]
    slope = tl.div_rn(tl.sum(value * normal, axis=1), width)[:, None]
    return tl.where(column < columns, rstd * (value - mean - normal * slope), 0.0)


@functools.cache
def tile(columns: int) -> tuple[int, int, int]:
    """Rows and columns of a tile of whole rows, and the warps of its program.

    Raises:
        ValueError: if a row is wider than ``WIDEST``.
    """
    if columns > WIDEST:
        raise ValueError(f"a row has {columns} columns, expected at most {WIDEST}: the Triton kernels hold a whole row")
    width = max(8, next_power_of_2(columns))
    height = min(MOST_ROWS, max(1, TILE // width))
    return height, width, min(16, max(1, height * width // WARP))


def programs(rows: int, height: int) -> tuple[int, int]:
    """Programs that sum over rows, at most PARTIALS, and the tiles that each of them goes over."""
    tiles = cdiv(cdiv(rows, height), PARTIALS)
    return cdiv(rows, height * tiles), tiles


@triton.jit
def sum_rows(source, count, columns, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sums [COLUMNS] in float32 over ``count`` rows of some columns of ``source`` [count, columns]."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, count, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < count)[:, None] & (column < columns)[None, :]
        total += tl.load(source + row[:, None] * columns + column[None, :], mask=inside, other=0.0).to(tl.float32)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["count"])
def _add_up(partial, first, second, third, count, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Into output program_id(1) the sum over the rows of its part of partial [outputs, count, columns]."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sums = sum_rows(partial + tl.program_id(1) * count * columns, count, columns, column, ROWS, COLUMNS)
    if tl.program_id(1) == 0:
        tl.store(first + column, sums.to(first.dtype.element_ty), mask=column < columns)
    elif tl.program_id(1) == 1:
        tl.store(second + column, sums.to(second.dtype.element_ty), mask=column < columns)
    else:
        tl.store(third + column, sums.to(third.dtype.element_ty), mask=column < columns)


def add_up(partial: Tensor, *like: Tensor) -> list[Tensor]:
    """The sums over the rows of each matrix of float32 ``partial`` [1 to 3, rows, columns], each in memory of its own
    and in the type of the vector that it is ``like``."""
    outputs, count, columns = partial.shape
    sums = [torch.empty(columns, dtype=x.dtype, device=partial.device) for x in like]
    first, second, third = (*sums, sums[0], sums[0])[:3]
    _add_up[cdiv(columns, SUM_COLUMNS), outputs](
        partial, first, second, third, count, columns, ROWS=SUM_ROWS, COLUMNS=SUM_COLUMNS
    )
    return sums
