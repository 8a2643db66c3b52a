"""Caser's convolutions: one kernel for all horizontal filters over shared rows, one for what a history takes from it.

A history that ends at row ``stop`` of its sequence has a slot, ``stop + sequence``: T + B of them, in the order of
the tape. A program of ``_convolve`` owns a run of slots and a block of filters (of all heights, ``(height - 1) n_h +
filter``), and convolves the rows that these histories cover, once for all of them. It goes through the taps from the
first one; before tap j its sums hold the first j taps, which is what a history gets that ends j rows later, whether
the filter is complete by then or runs past the end (the padding row's part of the remaining taps is a constant). So
at step j the slot that lies j rows on takes the sum: a gather inside the program. Its maxima go through registers;
only they are written, never the convolutions. Sequences need no tiles of their own and histories in any order, or one
per sequence, are the same launch. ``_histories`` copies each history's maxima and adds its vertical filters.

The backward pass turns the gradients to slots as well (of equal histories: their sum, in order), keeps for each
maximum how many rows before the stop it lies, and goes through the taps from the last one: the sum over distances
beyond tap t is what passes through tap t. That makes the gradient of x one gather and one product a tap, and the
gradient of a filter's tap one product over rows; neither scatters. Partial sums (of blocks of filters for x, of runs
of rows for filters) are added in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import caser_common as common
from .caser_common import filter_offset, find, history, lanes, shape_of, window_row
from .caser_windows_backward import caser_windows_backward
from .products import operand
from .sizes import cdiv

__all__ = ["caser_windows", "caser_windows_backward"]


@triton.jit
def _rest(
    weight_h, bias_h, padding_row, rest,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """rest [LENGTH + 1, lanes]: the bias and what the taps from this one on make of the padding row."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    height = lane // FILTERS + 1
    real = lane < LENGTH * FILTERS
    value = tl.load(bias_h + lane, mask=real, other=0.0).to(tl.float32)
    tl.store(rest + LENGTH * (LENGTH * FILTERS) + lane, value, mask=real)
    for i in range(0, LENGTH):
        tap = LENGTH - 1 - i
        offset = filter_offset(lane, height, tap, FILTERS, D)
        for start in range(0, D, WIDTH):
            column = start + tl.arange(0, WIDTH)
            row = tl.load(padding_row + column, mask=column < D, other=0.0).to(tl.float32)
            inside = (real & (tap < height))[:, None] & (column < D)[None, :]
            weight = tl.load(weight_h + offset[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)
            value += tl.sum(weight * row[None, :], 1)
        tl.store(rest + tap * (LENGTH * FILTERS) + lane, value, mask=real)


@triton.jit
def _offer(
    sums, best, position, rest, step, index, real_rows, lane, height,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Takes the maximum with the convolutions that start ``step`` rows before each stop."""
    constant = tl.load(rest + step * (LENGTH * FILTERS) + lane, mask=lane < LENGTH * FILTERS, other=0.0)
    source_row = tl.minimum(tl.maximum(index - step, 0), ROWS - 1)[:, None] + tl.zeros_like(position)
    value = tl.gather(sums, source_row, 0) + constant[None, :]
    value = tl.where(value < 0, 0.0, value)
    # From row 0 of the history to the last one from which the filter fits into the padded length.
    inside = (step <= real_rows)[:, None] & (step >= height[None, :] + (real_rows - LENGTH)[:, None])
    # Steps go back in time, so of equal maxima the last one taken is the first in time. A NaN stays.
    taken = inside & ((value >= best) | (value != value))
    return tl.where(taken, value, best), tl.where(taken, (real_rows - step)[:, None], position)


@triton.jit
def _tap(
    x, weight_h, sums, row, tap, rows, lane, height,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds one tap to the convolutions that start at each row. A filter that is complete goes on with zeros: a choice
    between old and new sums crashes Triton 3.7's compiler on sm_100."""
    within = (tap < height) & (lane < LENGTH * FILTERS)
    for start in range(0, D, WIDTH):
        column = start + tl.arange(0, WIDTH)
        known = ((row + tap >= 0) & (row + tap < rows))[:, None] & (column < D)[None, :]
        value = tl.load(x + (row + tap)[:, None] * D + column[None, :], mask=known, other=0.0)
        address = weight_h + filter_offset(lane, height, tap, FILTERS, D)[None, :] + column[:, None]
        weight = tl.load(address, mask=within[None, :] & (column < D)[:, None], other=0.0).to(value.dtype)
        sums = tl.dot(value, weight, sums, input_precision=PRECISION)
    return sums


@triton.jit(do_not_specialize=["rows", "sequences", "halvings"])
def _convolve(
    x, offsets, weight_h, rest, pooled, position_out, rows, sequences, halvings,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, SPAN: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Maxima of the slots of ROWS - SPAN + 1 rows, with SPAN distances from the stop at a time."""
    lane, height, most = lanes(LANES, LENGTH, FILTERS)
    number = tl.arange(0, ROWS)
    slot = tl.program_id(0) * (ROWS - SPAN + 1) + number
    owned = (number < ROWS - SPAN + 1) & (slot < rows + sequences)
    slot = tl.minimum(slot, rows + sequences - 1)
    sequence = find(offsets, slot, 1, sequences, halvings)
    stop = slot - sequence
    real_rows = tl.minimum(stop - tl.load(offsets + sequence), LENGTH)
    best = tl.zeros((ROWS, LANES), tl.float32)
    position = tl.zeros((ROWS, LANES), tl.int32)
    for nearest in range(0, LENGTH + 1, SPAN):  # once, unless histories are long
        furthest = tl.minimum(nearest + SPAN - 1, LENGTH)
        base = tl.min(stop, 0) - (nearest + SPAN - 1)
        row = (base + number).to(tl.int64)
        sums = tl.zeros((ROWS, LANES), tl.float32)
        for tap in range(0, tl.minimum(nearest, most)):
            sums = _tap(x, weight_h, sums, row, tap, rows, lane, height, LENGTH, FILTERS, D, WIDTH, PRECISION)
        for tap in range(nearest, tl.minimum(furthest + 1, most)):
            best, position = _offer(
                sums, best, position, rest, tap, stop - base, real_rows, lane, height, LENGTH, FILTERS, ROWS
            )  # fmt: skip
            sums = _tap(x, weight_h, sums, row, tap, rows, lane, height, LENGTH, FILTERS, D, WIDTH, PRECISION)
        for step in range(tl.maximum(nearest, most), furthest + 1):
            best, position = _offer(
                sums, best, position, rest, step, stop - base, real_rows, lane, height, LENGTH, FILTERS, ROWS
            )  # fmt: skip

    offset = slot.to(tl.int64)[:, None] * (LENGTH * FILTERS) + lane[None, :]
    inside = owned[:, None] & (lane < LENGTH * FILTERS)[None, :]
    tl.store(pooled + offset, best, mask=inside)
    tl.store(position_out + offset, tl.where(best > 0, position, -1), mask=inside)


@triton.jit(do_not_specialize=["size"])
def _histories(
    x, offsets, sequences, stops, weight_v, bias_v, padding_row, pooled, positions, out, position, size,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr, NV: tl.constexpr,
    HISTORIES: tl.constexpr, VERTICAL: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0) * HISTORIES + tl.arange(0, HISTORIES)
    inside = number < size
    sequence, stop, real_rows = history(offsets, sequences, stops, number, size, LENGTH)
    target = out + number.to(tl.int64) * (NV * D + LENGTH * FILTERS)
    parts: tl.constexpr = (D + WIDTH - 1) // WIDTH  # of a vertical filter's output
    vertical: tl.constexpr = (NV + VERTICAL - 1) // VERTICAL * parts
    if tl.program_id(1) < vertical:
        filters = tl.program_id(1) // parts * VERTICAL + tl.arange(0, VERTICAL)
        column = tl.program_id(1) % parts * WIDTH + tl.arange(0, WIDTH)
        total = tl.zeros((HISTORIES, VERTICAL, WIDTH), tl.float32)
        for row_index in range(0, LENGTH):
            value = window_row(x, padding_row, stop, real_rows, row_index, column, inside, D)
            weight = tl.load(weight_v + filters * LENGTH + row_index, mask=filters < NV, other=0.0).to(tl.float32)
            total += weight[None, :, None] * value[:, None, :]
        total += tl.load(bias_v + filters, mask=filters < NV, other=0.0).to(tl.float32)[None, :, None]
        written = inside[:, None, None] & (filters < NV)[None, :, None] & (column < D)[None, None, :]
        offset = (filters * D)[None, :, None] + column[None, None, :]
        tl.store(target[:, None, None] + offset, total.to(out.dtype.element_ty), mask=written)
    else:
        lane = (tl.program_id(1) - vertical) * COLUMNS + tl.arange(0, COLUMNS)
        taken = inside[:, None] & (lane < LENGTH * FILTERS)[None, :]
        slot = (stop + sequence).to(tl.int64)[:, None] * (LENGTH * FILTERS) + lane[None, :]
        value = tl.load(pooled + slot, mask=taken, other=0.0)
        where = tl.load(positions + slot, mask=taken, other=0)
        tl.store(target[:, None] + NV * D + lane[None, :], value.to(out.dtype.element_ty), mask=taken)
        row = number.to(tl.int64)[:, None] * (LENGTH * FILTERS)
        tl.store(position + row + lane[None, :], where, mask=taken)


def caser_windows(*arguments: Tensor) -> tuple[Tensor, Tensor]:
    x, offsets, sequences, stops, *weights = (a.contiguous() for a in arguments)
    weight_h, bias_h, weight_v, bias_v, padding_row = weights
    kind, x = x.dtype, operand(x, "x", x.dtype)
    shape = shape_of(x, offsets, weight_h, bias_h, weight_v)
    rows, size, count = x.shape[0], stops.shape[0], offsets.shape[0] - 1
    out = torch.empty(size, shape.skipped + shape.lanes, dtype=kind, device=x.device)
    position = torch.empty(size, shape.lanes, dtype=torch.int32, device=x.device)
    if out.numel() == 0:
        return out, position
    slots, halvings = rows + count, (count - 1).bit_length()
    pooled = torch.empty(slots, shape.lanes, dtype=torch.float32, device=x.device)
    positions = torch.empty(slots, shape.lanes, dtype=torch.int32, device=x.device)
    if shape.lanes > 0:
        blocks = cdiv(shape.lanes, shape.block)
        rest = torch.empty(shape.length + 1, shape.lanes, dtype=torch.float32, device=x.device)
        _rest[(blocks,)](weight_h, bias_h, padding_row, rest, **shape.rest)
        _convolve[cdiv(slots, shape.rows - shape.span + 1), blocks](
            x, offsets, weight_h, rest, pooled, positions, rows, count, halvings, **shape.convolve
        )
    vertical = cdiv(shape.n_v, shape.vertical) * cdiv(shape.d, shape.width)
    grid = (cdiv(size, common.HISTORIES), vertical + cdiv(shape.lanes, 128))
    _histories[grid](
        x, offsets, sequences, stops, weight_v, bias_v, padding_row, pooled, positions, out, position, size,
        **shape.histories, COLUMNS=128,
    )  # fmt: skip
    return out, position
