"""The backward pass of kernels/caser_windows.py, whose docstring says how it works."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import caser_common as common
from .caser_common import find, history, lanes, products_width, shape_of
from .products import operand, product_into
from .rows import sum_rows
from .segments import sort_ids
from .sizes import cdiv


@triton.jit
def _below(ascending, value, size, halvings):
    """How many of ``size`` ascending numbers are less than each value; 2 ** halvings > size."""
    low = value * 0
    high = low + size
    for _ in range(0, halvings):
        middle = (low + high) // 2
        less = tl.load(ascending + middle, mask=middle < high, other=2147483647) < value
        low = tl.where(less, middle + 1, low)
        high = tl.where(less, high, middle)
    return low


@triton.jit(do_not_specialize=["size", "halvings"])
def _by_slot(
    grad, position, offsets, sequences, stops, sorted_slots, order, grad_slots, distance, size, halvings,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, SKIPPED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """grad_slots: sums of grad over a slot's histories. distance: from a maximum to the stop, -1 where none is."""
    slot = tl.program_id(0)
    width: tl.constexpr = SKIPPED + LENGTH * FILTERS
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin = _below(sorted_slots, slot, size, halvings)
    total = tl.zeros((COLUMNS,), tl.float32)
    at = begin
    hit = tl.load(sorted_slots + at, mask=at < size, other=-1) == slot
    more = hit
    while more:
        number = tl.load(order + at).to(tl.int64)
        total += tl.load(grad + number * width + column, mask=column < width, other=0.0).to(tl.float32)
        at += 1
        more = tl.load(sorted_slots + at, mask=at < size, other=-1) == slot
    tl.store(grad_slots + slot.to(tl.int64) * width + column, total, mask=column < width)

    # Equal histories have equal maxima: the first one's are read.
    first = tl.load(order + begin, mask=hit, other=0).to(tl.int64)
    _, _, real_rows = history(offsets, sequences, stops, first, size, LENGTH)
    lane, inside = column - SKIPPED, (column >= SKIPPED) & (column < width)
    some = column < tl.where(hit, width, 0)  # a number that holds or not is no part of a mask for 3.9's interpreter
    place = tl.load(position + first * (LENGTH * FILTERS) + lane, mask=inside & some, other=-1)
    far = tl.where(place >= 0, tl.maximum(real_rows - place, 0), -1)
    tl.store(distance + slot.to(tl.int64) * (LENGTH * FILTERS) + lane, far, mask=inside)


@triton.jit(do_not_specialize=["rows", "sequences", "halvings", "slots", "runs", "low", "high"])
def _tap_gradients(
    grad_slots, distance, offsets, sums, grad_products, padded, grad_bias,
    rows, sequences, halvings, slots, runs, low, high,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, SKIPPED: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    """grad_products [rows + 1, width]: of the products with each row and, last, with the padding row. Every filter
    starts at ROWS rows, or before the first one; the programs beyond add up ``sums`` for the padding row."""
    tiles, width = (slots + LENGTH + ROWS - 2) // ROWS, products_width(low, high, FILTERS)
    lane, height, real, place, _, most = lanes(tl.program_id(1), low, high, LENGTH, FILTERS, LANES)
    kind = grad_products.dtype.element_ty
    if tl.program_id(0) < tiles:
        slot = tl.program_id(0) * ROWS - (LENGTH - 1) + tl.arange(0, ROWS)
        known = tl.minimum(tl.maximum(slot, 0), slots - 1)
        sequence = find(offsets, known, 1, sequences, halvings)
        ends = known - sequence == tl.load(offsets + sequence + 1)  # no filter starts where a sequence ends
        row = tl.where(slot < 0, slot, tl.where(ends | (slot >= slots), rows, slot - sequence))[:, None]
        at = (slot + LENGTH).to(tl.int64)[:, None]
        far_at = distance + at * (LENGTH * FILTERS) + lane[None, :]
        source = grad_slots + at * (SKIPPED + LENGTH * FILTERS) + SKIPPED + lane[None, :]
        target = grad_products + (row + LENGTH - 1).to(tl.int64) * width + (place + (LENGTH - 1) * FILTERS)[None, :]
        total = tl.zeros((ROWS, LANES), tl.float32)
        for i in range(0, LENGTH):
            tap = LENGTH - 1 - i
            inside = ((slot >= 0) & (slot < slots - tap - 1))[:, None] & real[None, :]
            far = tl.load(far_at, mask=inside, other=-1)
            total += tl.where(far == tap + 1, tl.load(source, mask=inside, other=0.0), 0.0)
            if tap < most:
                met = (row >= -tap) & (row < rows - tap) & (real & (tap < height))[None, :]
                tl.store(target, total.to(kind), mask=met)
            far_at -= LENGTH * FILTERS
            source -= SKIPPED + LENGTH * FILTERS
            target -= width + FILTERS
    else:
        step, run = tl.program_id(0) - tiles, tl.arange(0, RUNS)
        offset = (run * (LENGTH + 1) + step)[:, None] * (LENGTH * FILTERS) + lane[None, :]
        reached = tl.sum(tl.load(sums + offset, mask=(run < runs)[:, None] & real[None, :], other=0.0), 0)
        tl.store(padded + step * (LENGTH * FILTERS) + lane, reached, mask=real)
        last = grad_products + rows.to(tl.int64) * width
        tl.store(last + place + step * FILTERS, reached.to(kind), mask=real & (step < height))
        if step == LENGTH:
            tl.store(grad_bias + lane, reached.to(grad_bias.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["sequences", "halvings"])
def _finish_x(
    grad_rows, grad_slots, offsets, weight_v, grad_x, sequences, halvings,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr, NV: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """grad_x: that of the horizontal filters, and the vertical filters of the next LENGTH histories."""
    row = tl.program_id(0)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    total = tl.load(grad_rows + row.to(tl.int64) * D + column, mask=column < D, other=0.0)
    if NV > 0:
        sequence = find(offsets, row, 0, sequences, halvings)
        start = tl.load(offsets + sequence)
        source = grad_slots + (row + sequence).to(tl.int64) * (NV * D + LENGTH * FILTERS) + column
        for step in range(1, tl.minimum(LENGTH, tl.load(offsets + sequence + 1) - row) + 1):
            source += NV * D + LENGTH * FILTERS
            at = tl.minimum(row + step - start, LENGTH) - step  # of this row in the history that ends step rows on
            for v in tl.static_range(NV):
                weight = tl.load(weight_v + v * LENGTH + at).to(tl.float32)
                total += weight * tl.load(source + v * D, mask=column < D, other=0.0)
    tl.store(grad_x + row.to(tl.int64) * D + column, total.to(grad_x.dtype.element_ty), mask=column < D)


@triton.jit(do_not_specialize=["size", "each"])
def _sums(
    grad, position, x, offsets, sequences, stops, weight_v, padding_row, vertical, padding, sums, size, each,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr, NV: tl.constexpr,
    HISTORIES: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Over runs of ``each`` histories. vertical [runs, parts of D, NV, LENGTH + 1]: gradients of weight_v and, last,
    bias_v; padding [runs, blocks of steps, NV, D]: of padding_row by vertical filters; sums [runs, LENGTH + 1, lanes]:
    of the maxima at most so many rows from the stop, whose filters meet padding from this tap on."""
    parts: tl.constexpr = (D + WIDTH - 1) // WIDTH
    steps: tl.constexpr = (LENGTH + STEPS) // STEPS
    run, program = tl.program_id(0), tl.program_id(1) // steps
    step = tl.program_id(1) % steps * STEPS + tl.arange(0, STEPS)
    width: tl.constexpr = NV * D + LENGTH * FILTERS
    if program < NV * parts:
        v, column = program // parts, program % parts * WIDTH + tl.arange(0, WIDTH)
        inside = (column < D)[None, :] & (step <= LENGTH)[:, None]
        total = tl.zeros((STEPS, WIDTH), tl.float32)
        beyond = tl.zeros((STEPS, WIDTH), tl.float32)  # gradients that met padding
        for i in range(0, tl.minimum(each, size - run * each)):
            number = run * each + i
            _, stop, real_rows = history(offsets, sequences, stops, number, size, LENGTH)
            source = x + (stop - real_rows + step)[:, None] * D + column[None, :]
            value = tl.load(source, mask=inside & (step < real_rows)[:, None], other=0.0).to(tl.float32)
            slopes = grad + number.to(tl.int64) * width + v * D + column[None, :] + step[:, None] * 0
            slope = tl.load(slopes, mask=inside, other=0.0).to(tl.float32)
            total += slope * tl.where((step == LENGTH)[:, None], 1.0, value)
            if real_rows < LENGTH:
                beyond += tl.where(((step >= real_rows) & (step < LENGTH))[:, None], slope, 0.0)
        row = tl.load(padding_row + column, mask=column < D, other=0.0).to(tl.float32)
        sum = tl.sum(total + beyond * row[None, :], 1)
        offset = ((run * parts + program % parts) * NV + v) * (LENGTH + 1)
        tl.store(vertical + offset + step, sum, mask=step <= LENGTH)
        weight = tl.load(weight_v + v * LENGTH + step, mask=step < LENGTH, other=0.0).to(tl.float32)
        offset = ((run * steps + tl.program_id(1) % steps) * NV + v) * D
        tl.store(padding + offset + column, tl.sum(beyond * weight[:, None], 0), mask=column < D)
    else:
        lane = (program - NV * parts) * LANES + tl.arange(0, LANES)
        near = tl.zeros((STEPS, LANES), tl.float32)
        for i in range(0, each, HISTORIES):
            numbers = run * each + i + tl.arange(0, HISTORIES)
            _, _, real = history(offsets, sequences, stops, numbers, size, LENGTH)
            known = (numbers < tl.minimum(run * each + each, size))[:, None] & (lane < LENGTH * FILTERS)[None, :]
            rows = numbers.to(tl.int64)[:, None]
            at = tl.load(position + rows * (LENGTH * FILTERS) + lane[None, :], mask=known, other=-1)
            ours = tl.load(grad + rows * width + NV * D + lane[None, :], mask=known & (at >= 0), other=0.0)
            within = (real[:, None] - at)[:, None, :] <= step[None, :, None]
            near += tl.sum(tl.where(within, ours.to(tl.float32)[:, None, :], 0.0), 0)
        target = sums + (run * (LENGTH + 1) + step)[:, None] * (LENGTH * FILTERS) + lane[None, :]
        tl.store(target, near, mask=(step <= LENGTH)[:, None] & (lane < LENGTH * FILTERS)[None, :])


@triton.jit(do_not_specialize=["rows", "vertical_rows", "met_rows"])
def _finish(
    vertical, met, grad_rows, grad_taps, padded, padding_row,
    grad_weight_h, grad_weight_v, grad_bias_v, grad_padding, rows, vertical_rows, met_rows,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr, NV: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Adds what the padding row gives to a tap's filters; then what programs have summed of the vertical filters and
    their biases, and of the padding row."""
    blocks: tl.constexpr = (LENGTH * FILTERS + LANES - 1) // LANES
    parts: tl.constexpr = (D + WIDTH - 1) // WIDTH
    filters: tl.constexpr = NV * (LENGTH + 1)
    block = tl.program_id(0) - blocks * LENGTH * parts
    if block < 0:
        tap, d = tl.program_id(0) // parts % LENGTH, tl.program_id(0) % parts * WIDTH + tl.arange(0, WIDTH)
        lane, height, known, place, _, _ = lanes(
            tl.program_id(0) // (LENGTH * parts), 0, LENGTH, LENGTH, FILTERS, LANES
        )
        known = known & (tap < height)
        inside = known[:, None] & (d < D)[None, :]
        offset = (place + tap * FILTERS)[:, None] * D + d[None, :]
        reached = tl.load(padded + tap * (LENGTH * FILTERS) + lane, mask=known, other=0.0)
        row = tl.load(padding_row + d, mask=d < D, other=0.0).to(tl.float32)
        weight = tl.load(grad_taps + offset, mask=inside, other=0.0) + reached[:, None] * row[None, :]
        tl.store(grad_weight_h + offset, weight.to(grad_weight_h.dtype.element_ty), mask=inside)
    elif block * COLUMNS < filters:
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        total = sum_rows(vertical, vertical_rows, filters, column, ROWS, COLUMNS)
        filter, step = column // (LENGTH + 1), column % (LENGTH + 1)
        real = column < filters
        value = total.to(grad_weight_v.dtype.element_ty)
        tl.store(grad_weight_v + filter * LENGTH + step, value, mask=real & (step < LENGTH))
        tl.store(grad_bias_v + filter, total.to(grad_bias_v.dtype.element_ty), mask=real & (step == LENGTH))
    else:
        column = (block - (filters + COLUMNS - 1) // COLUMNS) * COLUMNS + tl.arange(0, COLUMNS)
        total = tl.load(grad_rows + rows.to(tl.int64) * D + column, mask=column < D, other=0.0)
        total += sum_rows(met, met_rows, D, column, ROWS, COLUMNS)
        tl.store(grad_padding + column, total.to(grad_padding.dtype.element_ty), mask=column < D)


def caser_windows_backward(*arguments: Tensor) -> tuple[Tensor, ...]:
    grad, x, offsets, sequences, stops, *weights, position = (a.contiguous() for a in arguments)
    weight_h, bias_h, weight_v, _, padding_row = weights
    grad_x, x = torch.empty_like(x), operand(x, "x", x.dtype)
    shape = shape_of(x, offsets, weight_h, bias_h, weight_v)
    rows, size, count = x.shape[0], stops.shape[0], offsets.shape[0] - 1
    if size == 0 or shape.skipped + shape.lanes == 0:
        return tuple(torch.zeros_like(a) for a in (grad_x, *weights))
    slots, halvings = rows + count, (count - 1).bit_length()
    blocks, parts = cdiv(shape.lanes, shape.block), cdiv(shape.d, shape.width)
    steps = cdiv(shape.length + 1, shape.steps)

    def floats(*sizes: int) -> Tensor:
        return torch.empty(*sizes, dtype=torch.float32, device=x.device)

    sorted_slots, order = sort_ids(stops, slots, sequences)
    grad_slots = floats(slots, shape.skipped + shape.lanes)
    distance = torch.empty(slots, shape.lanes, dtype=torch.int32, device=x.device)
    _by_slot[slots, cdiv(shape.skipped + shape.lanes, shape.by_slot["COLUMNS"])](
        grad, position, offsets, sequences, stops, sorted_slots, order, grad_slots, distance, size, size.bit_length(),
        **shape.by_slot,
    )  # fmt: skip

    each = cdiv(size, max(1, min(common.RUNS, common.PART // (4 * (shape.length + 1) * max(shape.lanes, 1)))))
    runs = cdiv(size, each)
    vertical, met = floats(runs * parts, shape.n_v, shape.length + 1), floats(runs * steps * shape.n_v, shape.d)
    sums, padded = floats(runs, shape.length + 1, shape.lanes), floats(shape.length + 1, shape.lanes)
    _sums[runs, (shape.n_v * parts + blocks) * steps](
        grad, position, x, offsets, sequences, stops, weight_v, padding_row, vertical, met, sums, size, each,
        **shape.sums,
    )  # fmt: skip

    grad_weight_h, grad_bias_h, grad_weight_v, grad_bias_v, grad_padding = map(torch.empty_like, weights)
    grad_taps, grad_rows = floats(*weight_h.shape), floats(rows + 1, shape.d)
    taps = operand(weight_h, "weight_h", x.dtype)
    for low, high, part in shape.parts(rows):
        weight, block = taps[part].flatten(0, 1), cdiv((high - low) * shape.n_h, shape.block)
        grad_products = torch.empty(rows + 1, weight.shape[0], dtype=x.dtype, device=x.device)
        if block > 0:
            grid = (cdiv(slots + shape.length - 1, common.ROWS) + shape.length + 1, block)
            _tap_gradients[grid](
                grad_slots, distance, offsets, sums, grad_products, padded, grad_bias_h,
                rows, count, halvings, slots, runs, low, high, **shape.tap_gradients,
            )  # fmt: skip
        target = grad_rows if low == 0 else torch.empty_like(grad_rows)
        product_into(grad_products, weight, target)
        if low > 0:
            grad_rows += target
        product_into(grad_products[:rows].t(), x, grad_taps[part].flatten(0, 1))
    if rows > 0:
        _finish_x[rows, parts](
            grad_rows, grad_slots, offsets, weight_v, grad_x, count, halvings, **shape.finish_x
        )  # fmt: skip
    programs = blocks * shape.length * parts
    programs += cdiv(shape.n_v * (shape.length + 1), common.COLUMNS) + cdiv(shape.d, common.COLUMNS)
    _finish[(programs,)](
        vertical, met, grad_rows, grad_taps, padded, padding_row,
        grad_weight_h, grad_weight_v, grad_bias_v, grad_padding, rows, vertical.shape[0], met.shape[0],
        **shape.finish,
    )  # fmt: skip
    return grad_x, grad_weight_h, grad_bias_h, grad_weight_v, grad_bias_v, grad_padding
