"""Dropout: one read, one write, the mask drawn in registers."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastseq.ops.philox import keep_scale, threshold

from . import philox
from .products import refuse_float64
from .sizes import cdiv, next_power_of_2


@triton.jit(do_not_specialize=["rows", "site"])
def _dropout(x, y, rng, rows, columns, threshold, scale, site, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    block = tl.program_id(1) * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)[None, :]
    inside = (row < rows) & (column < columns)
    offset = row * columns + column
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    dropped = philox.dropped(rng, row, block, site, threshold, ROWS, COLUMNS // 8)
    value = tl.where(dropped, 0.0, value * scale)
    tl.store(y + offset, value.to(y.dtype.element_ty), mask=inside)


# Elements of a program: 16 a thread with 4 warps, eight a Philox call. Not yet measured.
TILE = 2048


def dropout(x: Tensor, p: float, rng: Tensor | None, site: int) -> Tensor:
    refuse_float64(x, "x")
    source, rng = x.contiguous(), philox.adjacent(rng)
    rows, columns = math.prod(x.shape[:-1]), x.shape[-1]
    y = torch.empty_like(source)
    if y.numel() == 0:
        return y
    width = min(256, max(8, next_power_of_2(columns)))
    height = TILE // width
    grid = (cdiv(rows, height), cdiv(columns, width))
    _dropout[grid](source, y, rng, rows, columns, threshold(p), keep_scale(p), site, ROWS=height, COLUMNS=width)
    return y
