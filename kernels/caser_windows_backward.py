"""The backward pass of kernels/caser_windows.py, whose docstring says how it works."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import caser_common as common
from .caser_common import filter_offset, find, history, lanes, shape_of, window_row
from .products import operand
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


@triton.jit(do_not_specialize=["slots", "size", "halvings"])
def _by_slot(
    grad, position, offsets, sequences, stops, sorted_slots, order, grad_slots, distance, slots, size, halvings,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, SKIPPED: tl.constexpr, HISTORIES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """grad_slots: sums of grad over each slot's histories. distance: from a maximum to the stop, -1 where none is."""
    slot = tl.program_id(0) * HISTORIES + tl.arange(0, HISTORIES)
    width: tl.constexpr = SKIPPED + LENGTH * FILTERS
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = slot < slots
    begin = _below(sorted_slots, slot, size, halvings)
    total = tl.zeros((HISTORIES, COLUMNS), tl.float32)
    at = begin
    same = tl.load(sorted_slots + at, mask=at < size, other=-1) == slot
    hit = same
    while tl.max(same.to(tl.int32), 0) > 0:
        number = tl.load(order + at, mask=same, other=0).to(tl.int64)
        used = same[:, None] & (column < width)[None, :]
        total += tl.load(grad + number[:, None] * width + column[None, :], mask=used, other=0.0).to(tl.float32)
        at += 1
        same = same & (tl.load(sorted_slots + at, mask=at < size, other=-1) == slot)
    inside = real[:, None] & (column < width)[None, :]
    tl.store(grad_slots + slot.to(tl.int64)[:, None] * width + column[None, :], total, mask=inside)

    # Equal histories have equal maxima: the first one's are read.
    number = tl.load(order + begin, mask=hit, other=0).to(tl.int64)
    number = tl.where(hit, number, size)
    _, _, real_rows = history(offsets, sequences, stops, number, size, LENGTH)
    lane = column - SKIPPED
    offset = number[:, None] * (LENGTH * FILTERS) + lane[None, :]
    used = hit[:, None] & (lane >= 0)[None, :] & (column < width)[None, :]
    at = tl.load(position + offset, mask=used, other=-1)
    far = tl.where(at >= 0, tl.maximum(real_rows[:, None] - at, 0), -1)
    offset = slot.to(tl.int64)[:, None] * (LENGTH * FILTERS) + lane[None, :]
    tl.store(distance + offset, far.to(tl.int32), mask=inside & (lane >= 0)[None, :])


@triton.jit
def _arrivals(
    sums, grad_slots, distance, row, sequence, end, lane, step,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, SKIPPED: tl.constexpr,
):  # fmt: skip
    """Adds what the maxima at each row get from histories that end ``step`` rows later."""
    slot = row + step + sequence
    inside = ((row >= 0) & (row + step <= end))[:, None] & (lane < LENGTH * FILTERS)[None, :]
    far = tl.load(distance + slot[:, None] * (LENGTH * FILTERS) + lane[None, :], mask=inside, other=-1)
    address = grad_slots + slot[:, None] * (SKIPPED + LENGTH * FILTERS) + SKIPPED + lane[None, :]
    return sums + tl.load(address, mask=inside & (far == step), other=0.0)


@triton.jit
def _sequence_of(offsets, row, rows, sequences, halvings):
    """Sequence and end of each row; the nearest row's outside 0 ... rows - 1."""
    sequence = find(offsets, tl.minimum(tl.maximum(row, 0), rows - 1).to(tl.int32), 0, sequences, halvings)
    return sequence, tl.load(offsets + sequence), tl.load(offsets + sequence + 1)


@triton.jit(do_not_specialize=["rows", "sequences", "halvings"])
def _grad_x(
    x, grad_slots, distance, offsets, weight_h, partial, rows, sequences, halvings,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr, SKIPPED: tl.constexpr,
    ROWS: tl.constexpr, SPAN: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of filters' part of the gradient of ROWS - SPAN + 1 rows of x: partial [blocks, rows, D]. SPAN taps at
    a time. Products are in the type of x."""
    lane, height, most = lanes(LANES, LENGTH, FILTERS)
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
            source_row = tl.minimum(number + (lowest + SPAN - 1 - tap), ROWS - 1)[:, None]
            met = tl.gather(sums, source_row + tl.zeros((ROWS, LANES), tl.int32), 0).to(x.dtype.element_ty)
            inside = ((tap < height) & (lane < LENGTH * FILTERS))[:, None] & (column < D)[None, :]
            source = weight_h + filter_offset(lane, height, tap, FILTERS, D)[:, None] + column[None, :]
            weight = tl.load(source, mask=inside, other=0.0).to(x.dtype.element_ty)
            result = tl.dot(met, weight, result, input_precision=PRECISION)
    target = first + number
    written = ((number < ROWS - SPAN + 1) & (target < rows))[:, None] & (column < D)[None, :]
    offset = (tl.program_id(1) * rows.to(tl.int64) + target)[:, None] * D + column[None, :]
    tl.store(partial + offset, result, mask=written)


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
        offset = (block * rows.to(tl.int64) + row)[:, None] * D + column[None, :]
        total += tl.load(partial + offset, mask=inside, other=0.0)
    if NV > 0:
        sequence, start, end = _sequence_of(offsets, row, rows, sequences, halvings)
        for step in range(1, LENGTH + 1):
            stop = row + step
            known = stop <= end
            row_index = tl.minimum(stop - start, LENGTH) - step  # of this row in that history
            source = grad_slots + (stop + sequence)[:, None] * (NV * D + LENGTH * FILTERS) + column[None, :]
            for v in range(0, NV):
                weight = tl.load(weight_v + v * LENGTH + row_index, mask=known, other=0.0).to(tl.float32)
                total += weight[:, None] * tl.load(source + v * D, mask=inside & known[:, None], other=0.0)
    tl.store(grad_x + row[:, None] * D + column[None, :], total.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "sequences", "halvings", "tiles"])
def _grad_filters(
    x, grad_slots, distance, offsets, partial, rows, sequences, halvings, tiles,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr, SKIPPED: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Real rows' part of the gradient of weight_h, from ``tiles`` tiles of rows: partial [chunks, taps, n_h, D]."""
    lane, height, most = lanes(LANES, LENGTH, FILTERS)
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
            address = target + filter_offset(lane, height, tap, FILTERS, D)[:, None] + column[None, :]
            before = tl.load(address, mask=inside & (tile > tl.zeros_like(lane))[:, None], other=0.0)
            tl.store(address, before + product, mask=inside)
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
        address = grad_slots + slot[:, None] * (SKIPPED + LENGTH * FILTERS) + SKIPPED + lane[None, :]
        value = tl.load(address, mask=inside, other=0.0)
        total += tl.sum(tl.where(far[:, None, :] == step[None, :, None], value[:, None, :], 0.0), 0)
    offset = (tl.program_id(0) * (LENGTH + 1) + step)[:, None] * (LENGTH * FILTERS) + lane[None, :]
    tl.store(sums + offset, total, mask=(step <= LENGTH)[:, None] & (lane < LENGTH * FILTERS)[None, :])


@triton.jit(do_not_specialize=["runs"])
def _add_distances(sums, padded, grad_bias, runs, LENGTH: tl.constexpr, FILTERS: tl.constexpr, RUNS: tl.constexpr,
                   LANES: tl.constexpr):  # fmt: skip
    """padded [LENGTH + 1, lanes]: the runs' sums added up, over all distances so far; after the last one, grad_bias."""
    run, lane = tl.arange(0, RUNS), tl.program_id(0) * LANES + tl.arange(0, LANES)
    real = lane < LENGTH * FILTERS
    total = tl.zeros((LANES,), tl.float32)
    for step in range(0, LENGTH + 1):
        offset = (run * (LENGTH + 1) + step)[:, None] * (LENGTH * FILTERS) + lane[None, :]
        total += tl.sum(tl.load(sums + offset, mask=(run < runs)[:, None] & real[None, :], other=0.0), 0)
        tl.store(padded + step * (LENGTH * FILTERS) + lane, total, mask=real)
    tl.store(grad_bias + lane, total.to(grad_bias.dtype.element_ty), mask=real)


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
            offset = (index * FILTERS + filters)[:, None] * D + column[None, :]
            total = tl.zeros((LANES, WIDTH), tl.float32)
            source = partial + offset
            for _ in range(0, chunks):
                total += tl.load(source, mask=inside, other=0.0)
                source += size
            lane = (height - 1) * FILTERS + filters
            reached = tl.load(padded + tap * (LENGTH * FILTERS) + lane, mask=filters < FILTERS, other=0.0)
            total += reached[:, None] * padding[None, :]
            tl.store(grad_weight + offset, total.to(grad_weight.dtype.element_ty), mask=inside)
            weight = tl.load(weight_h + offset, mask=inside, other=0.0).to(tl.float32)
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
    step = tl.arange(0, STEPS)
    total = tl.zeros((VERTICAL, STEPS), tl.float32)
    padding = tl.zeros((WIDTH,), tl.float32)
    for tile in range(0, tiles):
        number = (tl.program_id(0) * tiles + tile) * HISTORIES + tl.arange(0, HISTORIES)
        inside = number < size
        _, stop, real_rows = history(offsets, sequences, stops, number, size, LENGTH)
        source = grad + number.to(tl.int64) * (NV * D + LENGTH * FILTERS)
        offset = (filters * D)[None, :, None] + column[None, None, :]
        known = inside[:, None, None] & (filters < NV)[None, :, None] & (column < D)[None, None, :]
        slope = tl.load(source[:, None, None] + offset, mask=known, other=0.0).to(tl.float32)
        total += tl.where(step[None, :] == LENGTH, tl.sum(tl.sum(slope, 2), 0)[:, None], 0.0)
        beyond = tl.zeros((HISTORIES, VERTICAL), tl.float32)  # weights that met padding
        for at in range(0, LENGTH):
            value = window_row(x, padding_row, stop, real_rows, at, column, inside, D)
            part = tl.sum(tl.sum(slope * value[:, None, :], 2), 0)
            total += tl.where(step[None, :] == at, part[:, None], 0.0)
            weight = tl.load(weight_v + filters * LENGTH + at, mask=filters < NV, other=0.0).to(tl.float32)
            beyond += tl.where((at >= real_rows)[:, None], weight[None, :], 0.0)
        padding += tl.sum(tl.sum(beyond[:, :, None] * slope, 1), 0)
    chunk = tl.program_id(0) * tl.num_programs(2) + tl.program_id(2)
    offset = (chunk * NV + filters)[:, None] * (LENGTH + 1) + step[None, :]
    tl.store(sums + offset, total, mask=(filters < NV)[:, None] & (step <= LENGTH)[None, :])
    row = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(grad_padding + row * D + column, padding, mask=column < D)


@triton.jit(do_not_specialize=["vertical_rows", "taps", "rows"])
def _finish(
    vertical, met, met_vertical, grad_weight, grad_bias, grad_padding, vertical_rows, taps, rows,
    LENGTH: tl.constexpr, D: tl.constexpr, NV: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Adds up what programs have summed: vertical filters and their biases, then the padding row."""
    filters: tl.constexpr = NV * (LENGTH + 1)
    first: tl.constexpr = (filters + COLUMNS - 1) // COLUMNS
    if tl.program_id(0) < first:
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        total = sum_rows(vertical, vertical_rows, filters, column, ROWS, COLUMNS)
        filter, step = column // (LENGTH + 1), column % (LENGTH + 1)
        real = column < filters
        value = total.to(grad_weight.dtype.element_ty)
        tl.store(grad_weight + filter * LENGTH + step, value, mask=real & (step < LENGTH))
        tl.store(grad_bias + filter, total.to(grad_bias.dtype.element_ty), mask=real & (step == LENGTH))
    else:
        column = (tl.program_id(0) - first) * COLUMNS + tl.arange(0, COLUMNS)
        total = sum_rows(met, taps, D, column, ROWS, COLUMNS)
        total += sum_rows(met_vertical, rows, D, column, ROWS, COLUMNS)
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
    parts = cdiv(shape.d, shape.width)

    def floats(*sizes: int) -> Tensor:
        return torch.empty(*sizes, dtype=torch.float32, device=x.device)

    sorted_slots, order = sort_ids(stops, slots, sequences)
    grad_slots = floats(slots, shape.skipped + shape.lanes)
    distance = torch.empty(slots, shape.lanes, dtype=torch.int32, device=x.device)
    grid = (cdiv(slots, common.HISTORIES), cdiv(shape.skipped + shape.lanes, 128))
    _by_slot[grid](
        grad, position, offsets, sequences, stops, sorted_slots, order, grad_slots, distance, slots, size,
        size.bit_length(), **shape.by_slot,
    )  # fmt: skip

    blocks = cdiv(shape.lanes, shape.block)
    partial = floats(blocks, rows, shape.d)
    if rows > 0 and shape.d > 0:
        if blocks > 0:
            columns = cdiv(shape.d, shape.grad_x["WIDTH"])
            _grad_x[cdiv(rows, shape.rows - shape.span + 1), blocks, columns](
                x, grad_slots, distance, offsets, weight_h, partial, rows, count, halvings, **shape.grad_x
            )
        grid = (cdiv(rows, common.HISTORIES), parts)
        _finish_x[grid](
            partial, grad_slots, offsets, weight_v, grad_x, rows, count, halvings, blocks, **shape.finish_x
        )  # fmt: skip

    grad_weight_h, grad_bias_h, grad_weight_v, grad_bias_v, grad_padding = map(torch.empty_like, weights)
    met, met_vertical, vertical = floats(0, shape.d), floats(0, shape.d), floats(0, shape.n_v, shape.length + 1)
    if blocks > 0:
        most = max(1, min(common.CHUNKS, common.PARTIAL // max(weight_h.numel(), 1)))
        tiles = cdiv(cdiv(rows, common.ROWS), most)
        chunks = cdiv(rows, common.ROWS * max(tiles, 1))
        by_chunk = floats(chunks, weight_h.numel())
        if by_chunk.numel() > 0:
            _grad_filters[chunks, blocks, parts](
                x, grad_slots, distance, offsets, by_chunk, rows, count, halvings, tiles, **shape.grad_filters
            )
        tiles = cdiv(cdiv(slots, common.HISTORIES), common.CHUNKS)
        runs = cdiv(slots, common.HISTORIES * tiles)
        sums, padded = floats(runs, shape.length + 1, shape.lanes), floats(shape.length + 1, shape.lanes)
        steps = cdiv(shape.length + 1, shape.distances["STEPS"])
        _distances[(runs, blocks, steps)](grad_slots, distance, sums, slots, tiles, **shape.distances)
        _add_distances[(blocks,)](sums, padded, grad_bias_h, runs, **shape.add_distances)
        if shape.d > 0:
            met = floats(weight_h.shape[0], shape.d)
            _finish_filters[(shape.length, shape.length, parts)](
                by_chunk, padded, weight_h, padding_row, grad_weight_h, met, chunks, **shape.finish_filters
            )  # fmt: skip
    if shape.skipped > 0:
        tiles = cdiv(cdiv(size, common.HISTORIES), 4 * common.CHUNKS)
        runs, groups = cdiv(size, common.HISTORIES * tiles), cdiv(shape.n_v, shape.vertical)
        vertical, met_vertical = floats(runs * parts, shape.n_v, shape.length + 1), floats(runs * groups, shape.d)
        _grad_vertical[(runs, groups, parts)](
            grad, x, offsets, sequences, stops, weight_v, padding_row, vertical, met_vertical, size, tiles,
            **shape.grad_vertical,
        )  # fmt: skip
    programs = cdiv(shape.n_v * (shape.length + 1), common.COLUMNS) + cdiv(shape.d, common.COLUMNS)
    if programs > 0:
        _finish[(programs,)](
            vertical, met, met_vertical, grad_weight_v, grad_bias_v, grad_padding, vertical.shape[0], met.shape[0],
            met_vertical.shape[0], **shape.finish,
        )  # fmt: skip
    return grad_x, grad_weight_h, grad_bias_h, grad_weight_v, grad_bias_v, grad_padding
