"""Adam on the rows of an embedding table: the steps that a row has missed at once, then the one that it has a gradient
in, with one read and one write of what moves. A row that is up to date and has no gradient is not read.

What a row has missed is known by a few numbers, in float64 as they are of long histories. A program has rows that lie
next to each other in the list; those that need more single steps than others wait for none of them: they are masked.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .products import refuse_float64
from .sizes import cdiv, next_power_of_2

# Elements of a tile, at most so many columns, and warps: 2 elements a thread, as each row has several values in
# float64. 4 spill on sm_90. Not yet measured.
TILE, COLUMNS, WARPS = 256, 256, 4


@triton.jit
def _power(exponent, LOG: tl.constexpr):
    """2 ** (exponent LOG) in float64."""
    return tl.exp2(exponent.to(tl.float64) * tl.full((), LOG, tl.float64))


@triton.jit(do_not_specialize=["capacity", "add1", "add2", "beta1", "beta2", "eps"])
def _update(weight, exp_avg, exp_avg_sq, last_step, history, clock, rows, grad, count, beta1, beta2, add1, add2, eps,
            capacity, n_rows, width, LISTED: tl.constexpr, COUNTED: tl.constexpr, STEPS: tl.constexpr,
            LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    number = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = number < (tl.minimum(capacity, tl.load(count)) if COUNTED else capacity)
    row = tl.load(rows + number, mask=valid, other=-1) if LISTED else number
    valid = valid & (row >= 0) & (row < n_rows)
    step, offset = tl.load(clock), tl.load(clock + 1)
    done = step - 1 if STEPS else step
    last = tl.load(last_step + row, mask=valid, other=0).to(tl.int64)
    behind = valid & (last > 0) & (last < done)
    moved = valid if STEPS else behind
    if tl.max(moved.to(tl.int32)) > 0:
        missed = tl.where(behind, done - last, 0)
        at = history + (offset + last) * 8
        lead = tl.maximum(tl.minimum(tl.load(at + 2, mask=behind, other=0.0).to(tl.int64), missed), 0)
        sums = at + lead * 8
        scale = tl.load(sums + 1, mask=behind, other=1.0)
        total = tl.load(sums + 3, mask=behind, other=0.0)
        share = tl.where(total > 0.0, 1.0 / tl.where(total > 0.0, total, 1.0), 0.0)
        shift = tl.load(sums + 4, mask=behind, other=0.0) * share
        two = tl.load(sums + 5, mask=behind, other=0.0) * share
        three = tl.load(sums + 6, mask=behind, other=0.0) * share
        four = tl.load(sums + 7, mask=behind, other=0.0) * share
        # Moments about the scale become those about the mean, as shares of the mean.
        unit, square = 1.0 / (scale + shift), shift * shift
        m2 = ((two - square) * unit * unit).to(tl.float32)[:, None]
        m3 = ((three - 3.0 * shift * two + 2.0 * shift * square) * unit * unit * unit).to(tl.float32)[:, None]
        m4 = (four - 4.0 * shift * three + 6.0 * square * two - 3.0 * square * square) * unit * unit * unit * unit
        m4 = m4.to(tl.float32)[:, None]
        total = (total * _power(lead, LOG_BETA1 - LOG_BETA2 / 2)).to(tl.float32)[:, None]
        centre = eps * (scale + shift) * _power(lead, -LOG_BETA2 / 2)
        centre = tl.minimum(centre, 1e30).to(tl.float32)[:, None]  # finite
        keep1 = _power(missed, LOG_BETA1)
        keep1 = tl.where(keep1 < 1e-20, 0.0, keep1).to(tl.float32)  # before it is subnormal
        keep1 = tl.where(missed > 0, keep1, 1.0)[:, None]
        keep2 = tl.where(missed > 0, _power(missed, LOG_BETA2).to(tl.float32), 1.0)[:, None]
        most = tl.max(lead)
        if STEPS:
            now = history + (offset + step) * 8
            rate, root_eps = tl.load(now).to(tl.float32), (eps * tl.load(now + 1)).to(tl.float32)
        for first in range(0, width, COLUMNS):
            column = first + tl.arange(0, COLUMNS)[None, :]
            inside = moved[:, None] & (column < width)
            place = row[:, None] * width + column
            m = tl.load(exp_avg + place, mask=inside, other=0.0)
            v = tl.load(exp_avg_sq + place, mask=inside, other=0.0)
            w = tl.load(weight + place, mask=inside, other=0.0)
            root = tl.sqrt_rn(v)
            inverse = 1.0 / (root + centre)
            y = centre * inverse
            moves = total * inverse * (1.0 + y * y * (m2 - y * (m3 - y * m4)))
            for k in range(1, most + 1):
                single = behind & (k <= lead)
                part = tl.load(at + k * 8, mask=single, other=0.0)
                where = tl.load(at + k * 8 + 1, mask=single, other=1.0) * eps
                exponent = tl.full((), 0, tl.int64) + k
                part = (part * _power(exponent, LOG_BETA1 - LOG_BETA2 / 2)).to(tl.float32)[:, None]
                where = tl.minimum(where * _power(exponent, -LOG_BETA2 / 2), 1e30).to(tl.float32)[:, None]
                moves += part / (root + where)
            w = tl.where(behind[:, None], w - m * moves, w)
            m, v = m * keep1, v * keep2
            if STEPS:
                slope = tl.load(grad + number[:, None] * width + column, mask=inside, other=0.0)
                m = beta1 * m + add1 * slope
                v = beta2 * v + add2 * slope * slope
                w -= rate * m / (tl.sqrt_rn(v) + root_eps)
            tl.store(exp_avg + place, m, mask=inside)
            tl.store(exp_avg_sq + place, v, mask=inside)
            tl.store(weight + place, w, mask=inside)
        tl.debug_barrier()  # every thread has read last_step
        tl.store(last_step + row, (tl.zeros_like(last) + step).to(tl.int32), mask=moved)


def adam_rows(
    weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, last_step: Tensor, history: Tensor, clock: Tensor,
    rows: Tensor | None, grad: Tensor | None, count: Tensor | None, beta1: float, beta2: float, eps: float,
) -> None:  # fmt: skip
    refuse_float64(weight, "weight")
    n_rows, width = weight.shape
    updated = (weight, exp_avg, exp_avg_sq, last_step)
    buffers = [tensor.contiguous() for tensor in updated]
    capacity = n_rows if rows is None else rows.shape[0]
    columns = min(COLUMNS, next_power_of_2(max(width, 1)))
    height = TILE // columns
    if capacity > 0:
        _update[(cdiv(capacity, height),)](
            *buffers, history.contiguous(), clock.contiguous(),
            clock if rows is None else rows.contiguous(), weight if grad is None else grad.contiguous(),
            clock if count is None else count, beta1, beta2, 1.0 - beta1, 1.0 - beta2, eps, capacity, n_rows, width,
            LISTED=rows is not None, COUNTED=count is not None, STEPS=grad is not None, LOG_BETA1=_log2(beta1),
            LOG_BETA2=_log2(beta2), ROWS=height, COLUMNS=columns, num_warps=WARPS,
        )  # fmt: skip
    for tensor, buffer in zip(updated, buffers, strict=True):
        if tensor.data_ptr() != buffer.data_ptr():  # was not contiguous
            tensor.copy_(buffer)
        else:
            torch.autograd.graph.increment_version(tensor)


def _log2(beta: float) -> float:
    """log2(beta), finite: a beta of 0 keeps nothing after one step either way."""
    return math.log2(beta) if beta > 0.0 else -1e4
