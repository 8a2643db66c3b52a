"""Caser's convolutions: one library product for the taps of all horizontal filters, one kernel that sums them along the
diagonals, one for what a history takes from that.

A tap of a filter meets each row of x in one number: the products x weight_hᵀ [T, taps n_h]. Histories share them. They
are made for as many heights at a time as stay in the L2 cache. ``_convolve`` sums them to the convolutions that start
at each row, for complete filters. ``_histories`` takes each history's maxima of these. A filter that runs past the end
of a short history meets the padding row: those sums are made anew for the history, with the padding row's products,
which are one more row of them. It also makes the outputs of the vertical filters.

The backward pass turns the gradients to slots: a history that ends at row ``stop`` of its sequence has a slot, ``stop +
sequence``, T + B of them in the order of the tape. A slot keeps the sum of the gradients of equal histories, in order,
and for each maximum how many rows before the stop it lies. What passes through tap t of the filter that starts at a row
is the sum over distances beyond t, and it comes from the slots that lie so many rows on. So one kernel gathers the
gradients of the products, and library products make those of x and of weight_h. Nothing scatters. Partial sums are
added in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import caser_common as common
from .caser_common import history, lanes, products_width, shape_of
from .caser_windows_backward import caser_windows_backward
from .products import operand, product_into
from .sizes import cdiv

__all__ = ["caser_windows", "caser_windows_backward"]


@triton.jit(do_not_specialize=["rows", "low", "high"])
def _convolve(
    products, weight_h, bias_h, padding_row, convolved, rows, low, high,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """convolved [rows, lanes]: the sums along the diagonals of products [rows + 1, width], whose last row, the
    padding row's, is made by the programs beyond."""
    tiles, width = (rows + ROWS - 1) // ROWS, products_width(low, high, FILTERS)
    if tl.program_id(0) < tiles:
        lane, height, real, place, _, most = lanes(tl.program_id(1), low, high, LENGTH, FILTERS, LANES)
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        source = products + row.to(tl.int64)[:, None] * width + place[None, :]
        sums = tl.zeros((ROWS, LANES), tl.float32)
        for tap in range(0, most):
            known = (row < rows - tap)[:, None] & (real & (tap < height))[None, :]
            sums += tl.load(source, mask=known, other=0.0)
            source += width + FILTERS
        sums += tl.load(bias_h + lane, mask=real, other=0.0).to(tl.float32)[None, :]
        target = convolved + row.to(tl.int64)[:, None] * (LENGTH * FILTERS) + lane[None, :]
        tl.store(target, sums, mask=(row < rows)[:, None] & real[None, :])
    else:
        block = (tl.program_id(0) - tiles) * tl.num_programs(1) + tl.program_id(1)
        index = block * LANES + tl.arange(0, LANES)
        weight = weight_h + (low * (low + 1) // 2 * FILTERS + index)[:, None] * D
        total = tl.zeros((LANES,), tl.float32)
        for start in range(0, D, WIDTH):
            column = start + tl.arange(0, WIDTH)
            padding = tl.load(padding_row + column, mask=column < D, other=0.0).to(tl.float32)
            inside = (index < width)[:, None] & (column < D)[None, :]
            value = tl.load(weight + column[None, :], mask=inside, other=0.0).to(tl.float32)
            total += tl.sum(value * padding[None, :], 1)
        tl.store(products + rows.to(tl.int64) * width + index, total, mask=index < width)


@triton.jit
def _take(value, best, position, start, fits):
    """The maximum with the convolutions that begin at row ``start`` of each history. ReLU: only what is above 0. Starts
    come in order of time, so the first of equal maxima stays. A NaN is taken."""
    taken = fits & ((value > best) | (value != value))
    return tl.where(taken, value, best), tl.where(taken, start, position)


@triton.jit(do_not_specialize=["size", "rows", "low", "high", "vertical"])
def _histories(
    x, offsets, sequences, stops, bias_h, weight_v, bias_v, padding_row, products, convolved, out, position_out,
    size, rows, low, high, vertical,
    LENGTH: tl.constexpr, FILTERS: tl.constexpr, D: tl.constexpr, NV: tl.constexpr,
    HISTORIES: tl.constexpr, VERTICAL: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The first ``vertical`` programs of a tile of histories make the outputs of vertical filters."""
    number = tl.program_id(0) * HISTORIES + tl.arange(0, HISTORIES)
    inside = number < size
    _, stop, real_rows = history(offsets, sequences, stops, number, size, LENGTH)
    start = (stop - real_rows).to(tl.int64)
    target = out + number.to(tl.int64) * (NV * D + LENGTH * FILTERS)
    if tl.program_id(1) < vertical:
        parts: tl.constexpr = (D + WIDTH - 1) // WIDTH  # of a vertical filter's output
        filters = tl.program_id(1) // parts * VERTICAL + tl.arange(0, VERTICAL)
        column = tl.program_id(1) % parts * WIDTH + tl.arange(0, WIDTH)
        padding = tl.load(padding_row + column, mask=column < D, other=0.0).to(tl.float32)
        total = tl.zeros((HISTORIES, VERTICAL, WIDTH), tl.float32)
        for at in range(0, LENGTH):
            known = (inside & (at < real_rows))[:, None] & (column < D)[None, :]
            row = tl.load(x + (start + at)[:, None] * D + column[None, :], mask=known, other=0.0).to(tl.float32)
            row = tl.where((at < real_rows)[:, None], row, padding[None, :])
            weight = tl.load(weight_v + filters * LENGTH + at, mask=filters < NV, other=0.0).to(tl.float32)
            total += weight[None, :, None] * row[:, None, :]
        total += tl.load(bias_v + filters, mask=filters < NV, other=0.0).to(tl.float32)[None, :, None]
        written = inside[:, None, None] & (filters < NV)[None, :, None] & (column < D)[None, None, :]
        outputs = target[:, None, None] + (filters * D)[None, :, None] + column[None, None, :]
        tl.store(outputs, total.to(out.dtype.element_ty), mask=written)
    else:
        block = tl.program_id(1) - vertical
        lane, height, real, place, least, most = lanes(block, low, high, LENGTH, FILTERS, LANES)
        used, width = inside[:, None] & real[None, :], products_width(low, high, FILTERS)
        best = tl.zeros((HISTORIES, LANES), tl.float32)
        position = tl.full((HISTORIES, LANES), -1, tl.int32)
        source = convolved + start[:, None] * (LENGTH * FILTERS) + lane[None, :]
        for begin in range(0, tl.max(real_rows) - least + 1):
            fits = used & (height[None, :] <= (real_rows - begin)[:, None])
            value = tl.load(source, mask=fits, other=0.0)
            best, position = _take(value, best, position, begin, fits)
            source += LENGTH * FILTERS
        shortest = tl.min(tl.where(inside, real_rows, LENGTH))
        bias = tl.load(bias_h + lane, mask=real, other=0.0).to(tl.float32)[None, :]
        for begin in range(tl.maximum(shortest - most + 1, 0), tl.where(shortest < LENGTH, LENGTH - least + 1, 0)):
            fits = used & (height[None, :] > (real_rows - begin)[:, None]) & (height <= LENGTH - begin)[None, :]
            value = tl.zeros((HISTORIES, LANES), tl.float32)
            met = (start + begin)[:, None] * width + place[None, :]
            beyond = rows.to(tl.int64) * width + place[None, :]
            for tap in range(0, most):
                product = tl.where((tap < real_rows - begin)[:, None], met, beyond)
                value += tl.load(products + product, mask=fits & (tap < height)[None, :], other=0.0)
                met += width + FILTERS
                beyond += FILTERS
            best, position = _take(value + bias, best, position, begin, fits)
        tl.store(target[:, None] + NV * D + lane[None, :], best.to(out.dtype.element_ty), mask=used)
        offset = number.to(tl.int64)[:, None] * (LENGTH * FILTERS) + lane[None, :]
        tl.store(position_out + offset, tl.where(best > 0, position, -1), mask=used)


def caser_windows(*arguments: Tensor) -> tuple[Tensor, Tensor]:
    x, offsets, sequences, stops, *weights = (a.contiguous() for a in arguments)
    weight_h, bias_h, weight_v, bias_v, padding_row = weights
    kind, x = x.dtype, operand(x, "x", x.dtype)
    shape = shape_of(x, offsets, weight_h, bias_h, weight_v)
    rows, size = x.shape[0], stops.shape[0]
    out = torch.empty(size, shape.skipped + shape.lanes, dtype=kind, device=x.device)
    position = torch.empty(size, shape.lanes, dtype=torch.int32, device=x.device)
    if out.numel() == 0:
        return out, position
    convolved = torch.empty(rows, shape.lanes, dtype=torch.float32, device=x.device)
    taps = operand(weight_h, "weight_h", x.dtype)
    vertical = cdiv(shape.n_v, shape.vertical) * cdiv(shape.d, shape.width)
    for low, high, part in shape.parts(rows):
        weight, blocks = taps[part].flatten(0, 1), cdiv((high - low) * shape.n_h, shape.block)
        width = weight.shape[0]
        products = torch.empty(rows + 1, width, dtype=torch.float32, device=x.device)
        if blocks > 0:
            product_into(x, weight.t(), products[:rows])
            grid = (cdiv(rows, common.ROWS) + cdiv(cdiv(width, shape.block), blocks), blocks)
            _convolve[grid](
                products, weight_h, bias_h, padding_row, convolved, rows, low, high, **shape.convolve
            )  # fmt: skip
        _histories[cdiv(size, common.HISTORIES), vertical + blocks](
            x, offsets, sequences, stops, bias_h, weight_v, bias_v, padding_row, products, convolved, out, position,
            size, rows, low, high, vertical, **shape.histories,
        )  # fmt: skip
        vertical = 0
    return out, position
