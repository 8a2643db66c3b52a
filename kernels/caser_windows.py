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

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compiled import Compiled, pointer
from .products import float32_precision

ROWS = 64  # rows of a program, at least: 64 x 32 sums are 16 registers a thread
SPAN = 65  # distances from a stop, or taps, that a program goes through with the same rows
LANES = 32  # filters of a program: at n_h = 8 four heights, which keeps the taps beyond a filter's height few
WIDTH = 64  # columns of x of one product
HISTORIES = 8  # of a program of _histories
VERTICAL = 4  # vertical filters of a program
CHUNKS = 32  # runs of rows that are summed apart: with 5 blocks of filters more programs than multiprocessors
PARTIAL = 1 << 25  # values that the sums of all runs may take, 128 MB: fewer runs for long, many or wide filters


@triton.jit
def _find(offsets, value, gap: tl.constexpr, sequences, halvings):
    """The last sequence s with offsets[s] + gap s <= value."""
    low = value * 0
    high = low + (sequences - 1)
    for _ in range(0, halvings):
        middle = (low + high + 1) // 2
        right = tl.load(offsets + middle) + gap * middle <= value
        low = tl.where(right, middle, low)
        high = tl.where(right, high, middle - 1)
    return low


@triton.jit
def _lanes(LANES: tl.constexpr, LENGTH: tl.constexpr, FILTERS: tl.constexpr):
    """The filters of program_id(1): their numbers and heights, and the largest height."""
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    most = tl.minimum((tl.program_id(1) * LANES + LANES - 1) // FILTERS + 1, LENGTH)
    return lane, lane // FILTERS + 1, most


@triton.jit
def _filter_place(lane, height, tap, FILTERS: tl.constexpr, D: tl.constexpr):
    return ((height * (height - 1) // 2 + tap) * FILTERS + lane % FILTERS) * D


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
        place = _filter_place(lane, height, tap, FILTERS, D)
        for start in range(0, D, WIDTH):
            column = start + tl.arange(0, WIDTH)
            row = tl.load(padding_row + column, mask=column < D, other=0.0).to(tl.float32)
            inside = (real & (tap < height))[:, None] & (column < D)[None, :]
            weight = tl.load(weight_h + place[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)
            value += tl.sum(weight * row[None, :], 1)
        tl.store(rest + tap * (LENGTH * FILTERS) + lane, value, mask=real)


@triton.jit
def _offer(
    sums, best, position, rest, step, index, real_rows, lane, height,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Takes the maximum with the convolutions that start ``step`` rows before each stop."""
    constant = tl.load(rest + step * (LENGTH * FILTERS) + lane, mask=lane < LENGTH * FILTERS, other=0.0)
    place = tl.minimum(tl.maximum(index - step, 0), ROWS - 1)[:, None] + tl.zeros_like(position)
    value = tl.gather(sums, place, 0) + constant[None, :]
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
        place = weight_h + _filter_place(lane, height, tap, FILTERS, D)[None, :] + column[:, None]
        weight = tl.load(place, mask=within[None, :] & (column < D)[:, None], other=0.0)
        sums = tl.dot(value, weight, sums, input_precision=PRECISION)
    return sums


@triton.jit(do_not_specialize=["rows", "sequences", "halvings"])
def _convolve(
    x, offsets, weight_h, rest, pooled, position_out, rows, sequences, halvings,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, SPAN: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Maxima of the slots of ROWS - SPAN + 1 rows, with SPAN distances from the stop at a time."""
    lane, height, most = _lanes(LANES, LENGTH, FILTERS)
    number = tl.arange(0, ROWS)
    slot = tl.program_id(0) * (ROWS - SPAN + 1) + number
    owned = (number < ROWS - SPAN + 1) & (slot < rows + sequences)
    slot = tl.minimum(slot, rows + sequences - 1)
    sequence = _find(offsets, slot, 1, sequences, halvings)
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

    place = slot.to(tl.int64)[:, None] * (LENGTH * FILTERS) + lane[None, :]
    inside = owned[:, None] & (lane < LENGTH * FILTERS)[None, :]
    tl.store(pooled + place, best, mask=inside)
    tl.store(position_out + place, tl.where(best > 0, position, -1), mask=inside)


@triton.jit
def _history(offsets, sequences, stops, number, size, LENGTH: tl.constexpr):
    """Of the histories ``number``: sequence, stop, real rows; an empty one beyond the last."""
    inside = number < size
    sequence = tl.load(sequences + number, mask=inside, other=0)
    stop = tl.load(stops + number, mask=inside, other=0)
    start = tl.load(offsets + sequence, mask=inside, other=0)
    return sequence, stop, tl.minimum(stop - start, LENGTH)


@triton.jit
def _window_row(x, padding_row, stop, real_rows, place, column, inside, D: tl.constexpr):
    """Row ``place`` of each padded history: float32 [histories, columns]."""
    row = (stop - real_rows + place).to(tl.int64)
    padding = tl.load(padding_row + column, mask=column < D, other=0.0)
    known = inside & (place < real_rows)
    value = tl.load(x + row[:, None] * D + column[None, :], mask=known[:, None] & (column < D)[None, :], other=0.0)
    return tl.where((place < real_rows)[:, None], value, padding[None, :]).to(tl.float32)


@triton.jit(do_not_specialize=["size"])
def _histories(
    x, offsets, sequences, stops, weight_v, bias_v, padding_row, pooled, positions, out, position, size,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr, NV: tl.constexpr,
    HISTORIES: tl.constexpr, VERTICAL: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0) * HISTORIES + tl.arange(0, HISTORIES)
    inside = number < size
    sequence, stop, real_rows = _history(offsets, sequences, stops, number, size, LENGTH)
    target = out + number.to(tl.int64) * (NV * D + LENGTH * FILTERS)
    parts: tl.constexpr = (D + WIDTH - 1) // WIDTH  # of a vertical filter's output
    vertical: tl.constexpr = (NV + VERTICAL - 1) // VERTICAL * parts
    if tl.program_id(1) < vertical:
        filters = tl.program_id(1) // parts * VERTICAL + tl.arange(0, VERTICAL)
        column = tl.program_id(1) % parts * WIDTH + tl.arange(0, WIDTH)
        total = tl.zeros((HISTORIES, VERTICAL, WIDTH), tl.float32)
        for place in range(0, LENGTH):
            value = _window_row(x, padding_row, stop, real_rows, place, column, inside, D)
            weight = tl.load(weight_v + filters * LENGTH + place, mask=filters < NV, other=0.0).to(tl.float32)
            total += weight[None, :, None] * value[:, None, :]
        total += tl.load(bias_v + filters, mask=filters < NV, other=0.0).to(tl.float32)[None, :, None]
        written = inside[:, None, None] & (filters < NV)[None, :, None] & (column < D)[None, None, :]
        place3 = (filters * D)[None, :, None] + column[None, None, :]
        tl.store(target[:, None, None] + place3, total.to(out.dtype.element_ty), mask=written)
    else:
        lane = (tl.program_id(1) - vertical) * COLUMNS + tl.arange(0, COLUMNS)
        taken = inside[:, None] & (lane < LENGTH * FILTERS)[None, :]
        slot = (stop + sequence).to(tl.int64)[:, None] * (LENGTH * FILTERS) + lane[None, :]
        value = tl.load(pooled + slot, mask=taken, other=0.0)
        where = tl.load(positions + slot, mask=taken, other=0)
        tl.store(target[:, None] + NV * D + lane[None, :], value.to(out.dtype.element_ty), mask=taken)
        row = number.to(tl.int64)[:, None] * (LENGTH * FILTERS)
        tl.store(position + row + lane[None, :], where, mask=taken)


@triton.jit(do_not_specialize=["slots", "size"])
def _by_slot(
    grad, position, offsets, sequences, stops, order, bounds, grad_slots, distance, slots, size,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, SKIPPED: tl.constexpr, HISTORIES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """grad_slots: sums of grad over each slot's histories. distance: from a maximum to the stop, -1 where none is."""
    slot = tl.program_id(0) * HISTORIES + tl.arange(0, HISTORIES)
    width: tl.constexpr = SKIPPED + LENGTH * FILTERS
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = slot < slots
    begin = tl.load(bounds + slot, mask=real, other=0)
    count = tl.load(bounds + slot + 1, mask=real, other=0) - begin
    total = tl.zeros((HISTORIES, COLUMNS), tl.float32)
    for i in range(0, tl.max(count, 0)):
        number = tl.load(order + begin + i, mask=i < count, other=0)
        used = (i < count)[:, None] & (column < width)[None, :]
        total += tl.load(grad + number[:, None] * width + column[None, :], mask=used, other=0.0).to(tl.float32)
    inside = real[:, None] & (column < width)[None, :]
    tl.store(grad_slots + slot.to(tl.int64)[:, None] * width + column[None, :], total, mask=inside)

    # Equal histories have equal maxima: the first one's are read.
    number = tl.load(order + begin, mask=count > 0, other=size)
    _, _, real_rows = _history(offsets, sequences, stops, number, size, LENGTH)
    lane = column - SKIPPED
    place = number[:, None] * (LENGTH * FILTERS) + lane[None, :]
    used = (count > 0)[:, None] & (lane >= 0)[None, :] & (column < width)[None, :]
    at = tl.load(position + place, mask=used, other=-1)
    far = tl.where(at >= 0, tl.maximum(real_rows[:, None] - at, 0), -1)
    place = slot.to(tl.int64)[:, None] * (LENGTH * FILTERS) + lane[None, :]
    tl.store(distance + place, far.to(tl.int32), mask=inside & (lane >= 0)[None, :])


@triton.jit
def _arrivals(
    sums, grad_slots, distance, row, sequence, end, lane, step,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, SKIPPED: tl.constexpr,
):  # fmt: skip
    """Adds what the maxima at each row get from histories that end ``step`` rows later."""
    slot = row + step + sequence
    inside = ((row >= 0) & (row + step <= end))[:, None] & (lane < LENGTH * FILTERS)[None, :]
    far = tl.load(distance + slot[:, None] * (LENGTH * FILTERS) + lane[None, :], mask=inside, other=-1)
    place = grad_slots + slot[:, None] * (SKIPPED + LENGTH * FILTERS) + SKIPPED + lane[None, :]
    return sums + tl.load(place, mask=inside & (far == step), other=0.0)


@triton.jit
def _sequence_of(offsets, row, rows, sequences, halvings):
    """Sequence and end of each row; the nearest row's outside 0 ... rows - 1."""
    sequence = _find(offsets, tl.minimum(tl.maximum(row, 0), rows - 1).to(tl.int32), 0, sequences, halvings)
    return sequence, tl.load(offsets + sequence), tl.load(offsets + sequence + 1)


@triton.jit(do_not_specialize=["rows", "sequences", "halvings"])
def _grad_x(
    grad_slots, distance, offsets, weight_h, partial, rows, sequences, halvings,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr, SKIPPED: tl.constexpr,
    ROWS: tl.constexpr, SPAN: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of filters' part of the gradient of ROWS - SPAN + 1 rows: partial [blocks, rows, D]. SPAN taps at a
    time."""
    lane, height, most = _lanes(LANES, LENGTH, FILTERS)
    number = tl.arange(0, ROWS)
    first = tl.program_id(0) * (ROWS - SPAN + 1)
    column = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    result = tl.zeros((ROWS, WIDTH), tl.float32)
    for lowest in range(0, LENGTH, SPAN):  # once, unless histories are long
        row = (first - (lowest + SPAN - 1) + number).to(tl.int64)  # where filters start
        sequence, _, end = _sequence_of(offsets, row, rows, sequences, halvings)
        end = tl.where(row < rows, end, -1)
        sums = tl.zeros((ROWS, LANES), tl.float32)
        above = tl.minimum(lowest + SPAN, most)
        for i in range(0, tl.where(lowest < above, LENGTH - above, 0)):
            sums = _arrivals(
                sums, grad_slots, distance, row, sequence, end, lane, LENGTH - i, LENGTH, FILTERS, SKIPPED
            )  # fmt: skip
        for i in range(lowest, above):
            tap = lowest + above - 1 - i
            sums = _arrivals(
                sums, grad_slots, distance, row, sequence, end, lane, tap + 1, LENGTH, FILTERS, SKIPPED
            )  # fmt: skip
            # Row first + k is met by this tap of the filter that starts tap rows earlier.
            place = tl.minimum(number + (lowest + SPAN - 1 - tap), ROWS - 1)[:, None]
            met = tl.gather(sums, place + tl.zeros((ROWS, LANES), tl.int32), 0).to(weight_h.dtype.element_ty)
            inside = ((tap < height) & (lane < LENGTH * FILTERS))[:, None] & (column < D)[None, :]
            source = weight_h + _filter_place(lane, height, tap, FILTERS, D)[:, None] + column[None, :]
            weight = tl.load(source, mask=inside, other=0.0)
            result = tl.dot(met, weight, result, input_precision=PRECISION)
    target = first + number
    written = ((number < ROWS - SPAN + 1) & (target < rows))[:, None] & (column < D)[None, :]
    place = (tl.program_id(1) * rows.to(tl.int64) + target)[:, None] * D + column[None, :]
    tl.store(partial + place, result, mask=written)


@triton.jit(do_not_specialize=["rows", "sequences", "halvings", "blocks"])
def _finish_x(
    partial, grad_slots, offsets, weight_v, grad_x, rows, sequences, halvings, blocks,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr, NV: tl.constexpr,
    HISTORIES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """grad_x: the parts of the blocks of filters in order, and the vertical filters of the next LENGTH histories."""
    row = (tl.program_id(0) * HISTORIES + tl.arange(0, HISTORIES)).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (column < D)[None, :]
    total = tl.zeros((HISTORIES, WIDTH), tl.float32)
    for block in range(0, blocks):
        place = (block * rows.to(tl.int64) + row)[:, None] * D + column[None, :]
        total += tl.load(partial + place, mask=inside, other=0.0)
    if NV > 0:
        sequence, start, end = _sequence_of(offsets, row, rows, sequences, halvings)
        for step in range(1, LENGTH + 1):
            stop = row + step
            known = stop <= end
            place = tl.minimum(stop - start, LENGTH) - step  # of this row in that history
            source = grad_slots + (stop + sequence)[:, None] * (NV * D + LENGTH * FILTERS) + column[None, :]
            for v in range(0, NV):
                weight = tl.load(weight_v + v * LENGTH + place, mask=known, other=0.0).to(tl.float32)
                total += weight[:, None] * tl.load(source + v * D, mask=inside & known[:, None], other=0.0)
    tl.store(grad_x + row[:, None] * D + column[None, :], total.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "sequences", "halvings", "tiles"])
def _grad_filters(
    x, grad_slots, distance, offsets, partial, rows, sequences, halvings, tiles,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr, SKIPPED: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Real rows' part of the gradient of weight_h, from ``tiles`` tiles of rows: partial [chunks, taps, n_h, D]."""
    lane, height, most = _lanes(LANES, LENGTH, FILTERS)
    column = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    size: tl.constexpr = LENGTH * (LENGTH + 1) // 2 * FILTERS * D
    target = partial + tl.program_id(0).to(tl.int64) * size
    for tile in range(0, tiles):
        row = (tl.program_id(0) * tiles + tile).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        sequence, _, end = _sequence_of(offsets, row, rows, sequences, halvings)
        end = tl.where(row < rows, end, -1)
        sums = tl.zeros((ROWS, LANES), tl.float32)
        for i in range(0, LENGTH - most):
            sums = _arrivals(
                sums, grad_slots, distance, row, sequence, end, lane, LENGTH - i, LENGTH, FILTERS, SKIPPED
            )  # fmt: skip
        for i in range(0, most):
            tap = most - 1 - i
            sums = _arrivals(
                sums, grad_slots, distance, row, sequence, end, lane, tap + 1, LENGTH, FILTERS, SKIPPED
            )  # fmt: skip
            # Rows that no history met are not read: a NaN there times 0 would not be 0.
            met = (tl.max((sums != 0).to(tl.int32), 1) > 0) & (row + tap < end)
            known = met[:, None] & (column < D)[None, :]
            value = tl.load(x + (row + tap)[:, None] * D + column[None, :], mask=known, other=0.0)
            product = tl.dot(tl.trans(sums.to(x.dtype.element_ty)), value, input_precision=PRECISION)
            inside = ((tap < height) & (lane < LENGTH * FILTERS))[:, None] & (column < D)[None, :]
            place = target + _filter_place(lane, height, tap, FILTERS, D)[:, None] + column[None, :]
            before = tl.load(place, mask=inside & (tile > 0), other=0.0)
            tl.store(place, before + product, mask=inside)
        tl.debug_barrier()  # the next tile adds to what other threads may have written


@triton.jit(do_not_specialize=["slots", "tiles"])
def _distances(
    grad_slots, distance, sums, slots, tiles,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, SKIPPED: tl.constexpr,
    HISTORIES: tl.constexpr, LANES: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """sums [chunks, LENGTH + 1, lanes]: gradients of the maxima by their distance from the stop."""
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    step = tl.program_id(2) * STEPS + tl.arange(0, STEPS)
    total = tl.zeros((STEPS, LANES), tl.float32)
    for tile in range(0, tiles):
        slot = (tl.program_id(0) * tiles + tile).to(tl.int64) * HISTORIES + tl.arange(0, HISTORIES)
        inside = (slot < slots)[:, None] & (lane < LENGTH * FILTERS)[None, :]
        far = tl.load(distance + slot[:, None] * (LENGTH * FILTERS) + lane[None, :], mask=inside, other=-1)
        place = grad_slots + slot[:, None] * (SKIPPED + LENGTH * FILTERS) + SKIPPED + lane[None, :]
        value = tl.load(place, mask=inside, other=0.0)
        total += tl.sum(tl.where(far[:, None, :] == step[None, :, None], value[:, None, :], 0.0), 0)
    place = (tl.program_id(0) * (LENGTH + 1) + step)[:, None] * (LENGTH * FILTERS) + lane[None, :]
    tl.store(sums + place, total, mask=(step <= LENGTH)[:, None] & (lane < LENGTH * FILTERS)[None, :])


@triton.jit(do_not_specialize=["chunks"])
def _finish_filters(
    partial, padded, weight_h, padding_row, grad_weight, grad_padding, chunks,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Tap program_id(1) of height program_id(0) + 1. padded [LENGTH + 1, lanes]: gradients of the maxima at most so
    many rows from the stop, whose filter meets padding from this tap on. grad_padding [taps, D]."""
    height = tl.program_id(0) + 1
    tap = tl.program_id(1)
    if tap < height:
        size: tl.constexpr = LENGTH * (LENGTH + 1) // 2 * FILTERS * D
        index = height * (height - 1) // 2 + tap
        column = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
        padding = tl.load(padding_row + column, mask=column < D, other=0.0).to(tl.float32)
        met = tl.zeros((WIDTH,), tl.float32)
        for start in range(0, FILTERS, LANES):
            filters = start + tl.arange(0, LANES)
            inside = (filters < FILTERS)[:, None] & (column < D)[None, :]
            place = (index * FILTERS + filters)[:, None] * D + column[None, :]
            total = tl.zeros((LANES, WIDTH), tl.float32)
            source = partial + place
            for _ in range(0, chunks):
                total += tl.load(source, mask=inside, other=0.0)
                source += size
            lane = (height - 1) * FILTERS + filters
            reached = tl.load(padded + tap * (LENGTH * FILTERS) + lane, mask=filters < FILTERS, other=0.0)
            total += reached[:, None] * padding[None, :]
            tl.store(grad_weight + place, total.to(grad_weight.dtype.element_ty), mask=inside)
            weight = tl.load(weight_h + place, mask=inside, other=0.0).to(tl.float32)
            met += tl.sum(reached[:, None] * weight, 0)
        tl.store(grad_padding + index * D + column, met, mask=column < D)


@triton.jit(do_not_specialize=["size", "tiles"])
def _grad_vertical(
    grad, x, offsets, sequences, stops, weight_v, padding_row, sums, grad_padding, size, tiles,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr, NV: tl.constexpr,
    HISTORIES: tl.constexpr, VERTICAL: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """sums [chunks, parts of D, NV, LENGTH + 1]: gradients of weight_v and, last, bias_v. grad_padding [..., D]."""
    filters = tl.program_id(1) * VERTICAL + tl.arange(0, VERTICAL)
    column = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    places = tl.arange(0, STEPS)
    total = tl.zeros((VERTICAL, STEPS), tl.float32)
    padding = tl.zeros((WIDTH,), tl.float32)
    for tile in range(0, tiles):
        number = (tl.program_id(0) * tiles + tile) * HISTORIES + tl.arange(0, HISTORIES)
        inside = number < size
        _, stop, real_rows = _history(offsets, sequences, stops, number, size, LENGTH)
        source = grad + number.to(tl.int64) * (NV * D + LENGTH * FILTERS)
        place = (filters * D)[None, :, None] + column[None, None, :]
        known = inside[:, None, None] & (filters < NV)[None, :, None] & (column < D)[None, None, :]
        slope = tl.load(source[:, None, None] + place, mask=known, other=0.0).to(tl.float32)
        total += tl.where(places[None, :] == LENGTH, tl.sum(tl.sum(slope, 2), 0)[:, None], 0.0)
        beyond = tl.zeros((HISTORIES, VERTICAL), tl.float32)  # weights that met padding
        for at in range(0, LENGTH):
            value = _window_row(x, padding_row, stop, real_rows, at, column, inside, D)
            part = tl.sum(tl.sum(slope * value[:, None, :], 2), 0)
            total += tl.where(places[None, :] == at, part[:, None], 0.0)
            weight = tl.load(weight_v + filters * LENGTH + at, mask=filters < NV, other=0.0).to(tl.float32)
            beyond += tl.where((at >= real_rows)[:, None], weight[None, :], 0.0)
        padding += tl.sum(tl.sum(beyond[:, :, None] * slope, 1), 0)
    chunk = tl.program_id(0) * tl.num_programs(2) + tl.program_id(2)
    place = (chunk * NV + filters)[:, None] * (LENGTH + 1) + places[None, :]
    tl.store(sums + place, total, mask=(filters < NV)[:, None] & (places <= LENGTH)[None, :])
    row = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(grad_padding + row * D + column, padding, mask=column < D)


def _power(size: int, least: int, most: int) -> int:
    return max(least, min(most, triton.next_power_of_2(size)))


class _Shape:
    """Sizes, and the constants of every launch."""

    def __init__(self, length: int, n_h: int, n_v: int, d: int, precision: str, size: int) -> None:
        self.length, self.n_h, self.n_v, self.d = length, n_h, n_v, d
        self.lanes, self.skipped = length * n_h, n_v * d
        # At least half of the rows are the program's own. More than 128 would not fit on the chip: longer histories
        # are gone through in spans, each of which starts with the first tap again.
        self.span = min(length + 1, SPAN)
        self.rows = max(ROWS, triton.next_power_of_2(2 * self.span - 2))
        self.block = _power(self.lanes, 16, LANES)
        self.width = _power(d, 16, WIDTH)
        self.vertical = _power(n_v, 1, VERTICAL)
        sizes = {"LENGTH": length, "FILTERS": n_h, "D": d}
        tiles = {"ROWS": self.rows, "LANES": self.block, "WIDTH": self.width, "PRECISION": precision}
        exact = size == 4 and precision == "ieee"
        # With 4 warps exact float32 products spill 11 KB in _grad_filters and need every register in _convolve; with 8
        # and 64 columns _convolve (sm_90) and _grad_x (sm_100) spill 8 and 28 bytes. In other types 4 warps spill 12 to
        # 40 bytes of _grad_filters on gfx942, and tf32 with 128 rows and 64 columns 240 bytes of _convolve.
        warps = {"num_warps": 4 if self.rows == 64 and not exact else 8}
        narrow = {"WIDTH": min(self.width, 32)} if size == 4 and (exact or self.rows > 64) else {}
        self.rest = {**sizes, "LANES": self.block, "WIDTH": self.width}
        self.convolve = {**sizes, **tiles, **warps, **narrow, "SPAN": self.span}
        self.grad_x = {**sizes, "SKIPPED": self.skipped, **tiles, **warps, **narrow, "SPAN": self.span}
        self.grad_filters = {**sizes, "SKIPPED": self.skipped, **tiles, "ROWS": ROWS, "num_warps": 8}
        self.histories = {
            **sizes,
            "NV": n_v,
            "HISTORIES": HISTORIES,
            "VERTICAL": self.vertical,
            "WIDTH": self.width,
        }
        self.by_slot = {
            "LENGTH": length,
            "FILTERS": n_h,
            "SKIPPED": self.skipped,
            "HISTORIES": HISTORIES,
            "COLUMNS": 128,
        }
        self.finish_x = {**sizes, "NV": n_v, "HISTORIES": HISTORIES, "WIDTH": self.width}
        self.distances = {
            "LENGTH": length,
            "FILTERS": n_h,
            "SKIPPED": self.skipped,
            "HISTORIES": HISTORIES,
            "LANES": self.block,
            "STEPS": _power(length + 1, 1, 32),
        }
        self.finish_filters = {**sizes, "LANES": _power(n_h, 1, 16), "WIDTH": self.width}
        self.grad_vertical = {**self.histories, "STEPS": triton.next_power_of_2(length + 1), "num_warps": 8}


def _shape(x: Tensor, bias_h: Tensor, weight_v: Tensor) -> _Shape:
    precision = float32_precision()
    return _Shape(*bias_h.shape, weight_v.shape[0], x.shape[1], precision, x.element_size())


def caser_windows(
    x: Tensor,
    offsets: Tensor,
    sequences: Tensor,
    stops: Tensor,
    weight_h: Tensor,
    bias_h: Tensor,
    weight_v: Tensor,
    bias_v: Tensor,
    padding_row: Tensor,
) -> tuple[Tensor, Tensor]:
    if x.dtype == torch.float64:
        raise ValueError("x is torch.float64: the Triton kernels compute in float32, float64 is for the CPU")
    x, offsets, sequences, stops = (a.contiguous() for a in (x, offsets, sequences, stops))
    weight_h, bias_h, weight_v, bias_v, padding_row = (
        a.contiguous() for a in (weight_h, bias_h, weight_v, bias_v, padding_row)
    )
    shape = _shape(x, bias_h, weight_v)
    rows, size, count = x.shape[0], stops.shape[0], offsets.shape[0] - 1
    out = torch.empty(size, shape.skipped + shape.lanes, dtype=x.dtype, device=x.device)
    position = torch.empty(size, shape.lanes, dtype=torch.int32, device=x.device)
    if out.numel() == 0:
        return out, position
    slots, halvings = rows + count, (count - 1).bit_length()
    pooled = torch.empty(slots, shape.lanes, dtype=torch.float32, device=x.device)
    positions = torch.empty(slots, shape.lanes, dtype=torch.int32, device=x.device)
    if shape.lanes > 0:
        blocks = triton.cdiv(shape.lanes, shape.block)
        rest = torch.empty(shape.length + 1, shape.lanes, dtype=torch.float32, device=x.device)
        _rest[(blocks,)](weight_h, bias_h, padding_row, rest, **shape.rest)
        grid = (triton.cdiv(slots, shape.rows - shape.span + 1), blocks)
        _convolve[grid](
            x, offsets, weight_h, rest, pooled, positions, rows, count, halvings, **shape.convolve
        )  # fmt: skip
    vertical = triton.cdiv(shape.n_v, shape.vertical) * triton.cdiv(shape.d, shape.width)
    grid = (triton.cdiv(size, HISTORIES), vertical + triton.cdiv(shape.lanes, 128))
    _histories[grid](
        x, offsets, sequences, stops, weight_v, bias_v, padding_row, pooled, positions, out, position, size,
        **shape.histories, COLUMNS=128,
    )  # fmt: skip
    return out, position


def caser_windows_backward(
    grad: Tensor,
    x: Tensor,
    offsets: Tensor,
    sequences: Tensor,
    stops: Tensor,
    weight_h: Tensor,
    bias_h: Tensor,
    weight_v: Tensor,
    bias_v: Tensor,
    padding_row: Tensor,
    position: Tensor,
) -> tuple[Tensor, ...]:
    weights = (weight_h, bias_h, weight_v, bias_v, padding_row)
    grad, x, offsets, sequences, stops, position = (
        a.contiguous() for a in (grad, x, offsets, sequences, stops, position)
    )
    weight_h, bias_h, weight_v, bias_v, padding_row = (a.contiguous() for a in weights)
    shape = _shape(x, bias_h, weight_v)
    rows, size, count = x.shape[0], stops.shape[0], offsets.shape[0] - 1
    if size == 0 or shape.skipped + shape.lanes == 0:
        return tuple(torch.zeros_like(a) for a in (x, *weights))
    slots, halvings = rows + count, (count - 1).bit_length()
    parts = triton.cdiv(shape.d, shape.width)

    def floats(*sizes: int) -> Tensor:
        return torch.empty(*sizes, dtype=torch.float32, device=x.device)

    in_order, order = torch.sort(stops + sequences, stable=True)
    bounds = torch.searchsorted(in_order, torch.arange(slots + 1, device=x.device))
    grad_slots = floats(slots, shape.skipped + shape.lanes)
    distance = torch.empty(slots, shape.lanes, dtype=torch.int32, device=x.device)
    grid = (triton.cdiv(slots, HISTORIES), triton.cdiv(shape.skipped + shape.lanes, 128))
    _by_slot[grid](
        grad, position, offsets, sequences, stops, order, bounds, grad_slots, distance, slots, size, **shape.by_slot
    )

    blocks = triton.cdiv(shape.lanes, shape.block)
    grad_x = torch.empty_like(x)
    partial = floats(blocks, rows, shape.d)
    if rows > 0 and shape.d > 0:
        if blocks > 0:
            columns = triton.cdiv(shape.d, shape.grad_x["WIDTH"])
            grid = (triton.cdiv(rows, shape.rows - shape.span + 1), blocks, columns)
            _grad_x[grid](
                grad_slots, distance, offsets, weight_h, partial, rows, count, halvings, **shape.grad_x
            )  # fmt: skip
        grid = (triton.cdiv(rows, HISTORIES), parts)
        _finish_x[grid](
            partial, grad_slots, offsets, weight_v, grad_x, rows, count, halvings, blocks, **shape.finish_x
        )  # fmt: skip

    grad_weight_h, grad_bias_h = torch.zeros_like(weight_h), torch.zeros_like(bias_h)
    grad_padding = torch.zeros(shape.d, dtype=torch.float32, device=x.device)
    if blocks > 0:
        tiles = triton.cdiv(triton.cdiv(rows, ROWS), max(1, min(CHUNKS, PARTIAL // max(weight_h.numel(), 1))))
        chunks = triton.cdiv(rows, ROWS * max(tiles, 1))
        by_chunk = floats(chunks, weight_h.numel())
        if by_chunk.numel() > 0:
            _grad_filters[(chunks, blocks, parts)](
                x, grad_slots, distance, offsets, by_chunk, rows, count, halvings, tiles, **shape.grad_filters
            )  # fmt: skip
        tiles = triton.cdiv(triton.cdiv(slots, HISTORIES), CHUNKS)
        runs = triton.cdiv(slots, HISTORIES * tiles)
        sums = floats(runs, shape.length + 1, shape.lanes)
        steps = triton.cdiv(shape.length + 1, shape.distances["STEPS"])
        _distances[(runs, blocks, steps)](grad_slots, distance, sums, slots, tiles, **shape.distances)
        padded = sums.sum(0).cumsum(0)
        grad_bias_h = padded[-1].view(bias_h.shape).to(bias_h.dtype)
        if shape.d > 0:
            met = floats(weight_h.shape[0], shape.d)
            _finish_filters[(shape.length, shape.length, parts)](
                by_chunk, padded, weight_h, padding_row, grad_weight_h, met, chunks, **shape.finish_filters
            )  # fmt: skip
            grad_padding = met.sum(0)

    grad_weight_v, grad_bias_v = torch.zeros_like(weight_v), torch.zeros_like(bias_v)
    if shape.skipped > 0:
        tiles = triton.cdiv(triton.cdiv(size, HISTORIES), 4 * CHUNKS)
        runs, groups = triton.cdiv(size, HISTORIES * tiles), triton.cdiv(shape.n_v, shape.vertical)
        sums, met = floats(runs * parts, shape.n_v, shape.length + 1), floats(runs * groups, shape.d)
        _grad_vertical[(runs, groups, parts)](
            grad, x, offsets, sequences, stops, weight_v, padding_row, sums, met, size, tiles, **shape.grad_vertical
        )
        total = sums.sum(0).to(weight_v.dtype)
        grad_weight_v, grad_bias_v = total[:, :-1].contiguous(), total[:, -1].contiguous()
        grad_padding = grad_padding + met.sum(0)
    return grad_x, grad_weight_h, grad_bias_h, grad_weight_v, grad_bias_v, grad_padding.to(padding_row.dtype)


def _compiled(dtype: torch.dtype, precision: str, length: int, n_h: int, n_v: int, d: int, rows: int) -> list[Compiled]:
    """Every kernel for ``rows`` rows in sequences of 100, with a history that ends after each."""
    shape = _Shape(length, n_h, n_v, d, precision, dtype.itemsize)
    count = rows // 100
    slots, taps = rows + count, length * (length + 1) // 2 * n_h
    kind, size = pointer(dtype), dtype.itemsize
    names = ("x", "weight_h", "bias_h", "weight_v", "bias_v", "padding_row", "out", "grad", "grad_x", "grad_weight")
    arguments = dict.fromkeys(names, kind)
    names = ("rest", "pooled", "partial", "grad_slots", "sums", "grad_padding", "padded")
    arguments |= dict.fromkeys(names, pointer(torch.float32))
    names = ("position", "positions", "position_out", "distance", "offsets")
    arguments |= dict.fromkeys(names, pointer(torch.int32))
    arguments |= dict.fromkeys(("stops", "order", "bounds"), pointer(torch.int64))
    numbers: dict[str, Any] = {
        "rows": rows,
        "size": rows,
        "slots": slots,
        "halvings": 4,
        "blocks": 5,
        "tiles": 1,
        "chunks": 32,
    }
    convolution = 2 * rows * taps * d
    weights, table, maxima = taps * d * size, rows * d * size, slots * shape.lanes * 8
    upstream = rows * (shape.skipped + shape.lanes)
    matrix = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, {"tf32": "tf32"}.get(precision))
    vertical = 2 * rows * n_v * length * d
    launches = (
        (_rest, shape.rest, weights, 2 * taps * d, None),
        (_convolve, shape.convolve, table + weights + maxima, convolution, matrix),
        (_histories, {**shape.histories, "COLUMNS": 128}, table + maxima + upstream * size, vertical, None),
        (_by_slot, shape.by_slot, upstream * (size + 4) + maxima, 0, None),
        (_grad_x, shape.grad_x, maxima + table + weights, convolution, matrix),
        (_finish_x, shape.finish_x, 2 * table + rows * shape.skipped * 4, vertical, None),
        (_grad_filters, shape.grad_filters, maxima + table + weights, convolution, matrix),
        (_distances, shape.distances, maxima, 0, None),
        (_finish_filters, shape.finish_filters, 2 * weights, 0, None),
        (_grad_vertical, shape.grad_vertical, table + rows * shape.skipped * size, vertical, None),
    )
    words = f"{dtype}{'' if size == 2 else ' ' + precision}, L {length}, n_h {n_h}, n_v {n_v}, d {d}, {rows} rows"
    entries = []
    for kernel, constants, moved, flops, products in launches:
        chosen = dict(constants)
        warps = chosen.pop("num_warps", 4)
        # In the vertical kernels and _by_slot the sequences are those of the histories, elsewhere a number.
        per_history = "stops" in kernel.arg_names
        known = {**arguments, **numbers, "sequences": pointer(torch.int64) if per_history else count, **chosen}
        entries.append(
            Compiled(
                kernel,
                words.removeprefix("torch."),
                {name: known[name] for name in kernel.arg_names},
                bytes=moved,
                flops=flops,
                num_warps=warps,
                matrix=products,
                seed=(length, n_h, n_v, d) == (20, 8, 4, 64),
            )
        )
    return entries


_KINDS = ((torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee"))
COMPILED = [
    entry
    for sizes, kinds in (
        ((20, 8, 4, 64), (*_KINDS, (torch.float16, "ieee"))),
        ((50, 8, 4, 64), _KINDS),
        ((5, 16, 4, 128), _KINDS),
        ((100, 8, 4, 64), _KINDS),
        ((200, 8, 4, 64), _KINDS),
    )
    for dtype, precision in kinds
    for entry in _compiled(dtype, precision, *sizes, 2048)
]
