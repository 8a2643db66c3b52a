"""Adam on the rows of an embedding table: one read and one write of what moves, and nothing of what does not.

By default a program takes some rows of the table and looks up which of them have a gradient; lazily it takes some
rows of the gradient. A row that has never had a gradient is not read.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .products import refuse_float64
from .sizes import cdiv, next_power_of_2

# Elements of a tile, at most so many columns, and warps: 4 elements a thread, each with four values (8 take 140
# registers and spill). Not yet measured.
TILE, COLUMNS, WARPS = 512, 256, 4
MARKED = 1024


@triton.jit(do_not_specialize=["count"])
def _mark(rows, slots, count, n_rows, MARKED: tl.constexpr):
    """slots[rows[i]] = i."""
    i = tl.program_id(0) * MARKED + tl.arange(0, MARKED)
    row = tl.load(rows + i, mask=i < count, other=-1)
    tl.store(slots + row, i, mask=(row >= 0) & (row < n_rows))


@triton.jit(do_not_specialize=["count"])
def _update(weight, exp_avg, exp_avg_sq, last_step, slots, grad, step_number, lr, beta1, beta2, add1, add2, eps,
            count, n_rows, width, LAZY: tl.constexpr, LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr,
            ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    number = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    if LAZY:
        row = tl.load(slots + number, mask=number < count, other=-1)  # the rows themselves
        slot = number
        touched = (row >= 0) & (row < n_rows)
    else:
        row = number
        slot = tl.load(slots + row, mask=row < n_rows, other=-1).to(tl.int64)
        touched = slot >= 0
    last = tl.load(last_step + row, mask=(row >= 0) & (row < n_rows), other=0)
    moved = touched if LAZY else touched | (last > 0)  # else its moments are zero, and so is its move
    if tl.max(moved.to(tl.int32)) > 0:
        step = tl.load(step_number)
        # Powers of the step in float64, as 1 - beta cancels; by log2(beta), which the host knows to all digits.
        exponent = step.to(tl.float64)
        rate = (lr / (1.0 - tl.exp2(exponent * tl.full((), LOG_BETA1, tl.float64)))).to(tl.float32)
        root = tl.sqrt(1.0 - tl.exp2(exponent * tl.full((), LOG_BETA2, tl.float64))).to(tl.float32)
        since = (step - last).to(tl.float32)
        keep1 = tl.where(since == 1.0, beta1, tl.exp2(since * LOG_BETA1))[:, None]
        keep2 = tl.where(since == 1.0, beta2, tl.exp2(since * LOG_BETA2))[:, None]
        for first in range(0, width, COLUMNS):
            column = first + tl.arange(0, COLUMNS)[None, :]
            inside = moved[:, None] & (column < width)
            offset = row[:, None] * width + column
            slope = tl.load(
                grad + slot[:, None] * width + column, mask=touched[:, None] & (column < width), other=0.0
            ).to(tl.float32)  # fmt: skip
            m = keep1 * tl.load(exp_avg + offset, mask=inside, other=0.0).to(tl.float32) + add1 * slope
            v = keep2 * tl.load(exp_avg_sq + offset, mask=inside, other=0.0).to(tl.float32) + add2 * slope * slope
            w = tl.load(weight + offset, mask=inside, other=0.0).to(tl.float32)
            w -= rate * m / (tl.sqrt_rn(v) / root + eps)
            tl.store(exp_avg + offset, m.to(exp_avg.dtype.element_ty), mask=inside)
            tl.store(exp_avg_sq + offset, v.to(exp_avg_sq.dtype.element_ty), mask=inside)
            tl.store(weight + offset, w.to(weight.dtype.element_ty), mask=inside)
        tl.debug_barrier()  # every thread has read last_step
        tl.store(last_step + row, tl.zeros_like(last) + step, mask=moved)


def adam_rows(
    weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, last_step: Tensor, rows: Tensor, grad: Tensor, step: Tensor,
    lr: float, beta1: float, beta2: float, eps: float, lazy: bool,
) -> None:  # fmt: skip
    refuse_float64(weight, "weight")
    (n_rows, width), count = weight.shape, rows.shape[0]
    updated = (weight, exp_avg, exp_avg_sq, last_step)
    buffers = [tensor.contiguous() for tensor in updated]
    slots = rows.contiguous()
    if not lazy:
        slots = torch.full((n_rows,), -1, dtype=torch.int32, device=weight.device)
        if count > 0:
            _mark[(cdiv(count, MARKED),)](rows.contiguous(), slots, count, n_rows, MARKED=MARKED)
    columns = min(COLUMNS, next_power_of_2(max(width, 1)))
    height = TILE // columns
    tiles = cdiv(count if lazy else n_rows, height)
    if tiles > 0:
        _update[(tiles,)](
            *buffers, slots, grad.contiguous(), step, lr, beta1, beta2, 1.0 - beta1, 1.0 - beta2, eps, count, n_rows,
            width, LAZY=lazy, LOG_BETA1=_log2(beta1), LOG_BETA2=_log2(beta2), ROWS=height, COLUMNS=columns,
            num_warps=WARPS,
        )  # fmt: skip
    for tensor, buffer in zip(updated, buffers, strict=True):
        if tensor.data_ptr() != buffer.data_ptr():  # was not contiguous
            tensor.copy_(buffer)
        else:
            torch.autograd.graph.increment_version(tensor)


def _log2(beta: float) -> float:
    """log2(beta), finite: a beta of 0 keeps nothing after one step either way."""
    return math.log2(beta) if beta > 0.0 else -1e4
