"""What the kernels of both passes of kernels/caser_windows.py share: sizes, launches, finding histories and filters."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .products import float32_precision
from .sizes import next_power_of_2

ROWS = 64  # rows of a program, at least: 64 x 32 sums are 16 registers a thread
SPAN = 65  # distances from a stop, or taps, that a program goes through with the same rows
LANES = 32  # filters of a program: at n_h = 8 four heights, which keeps the taps beyond a filter's height few
WIDTH = 64  # columns of x of one product
HISTORIES = 8  # of a program of _histories
COLUMNS = 16  # of a program that adds up partial sums
VERTICAL = 4  # vertical filters of a program
CHUNKS = 32  # runs of rows that are summed apart: with 5 blocks of filters more programs than multiprocessors
PARTIAL = 1 << 25  # values that the sums of all runs may take, 128 MB: fewer runs for long, many or wide filters


@triton.jit
def find(offsets, value, gap: tl.constexpr, sequences, halvings):
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
def lanes(LANES: tl.constexpr, LENGTH: tl.constexpr, FILTERS: tl.constexpr):
    """The filters of program_id(1): their numbers and heights, and the largest height."""
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    most = tl.minimum((tl.program_id(1) * LANES + LANES - 1) // FILTERS + 1, LENGTH)
    return lane, lane // FILTERS + 1, most


@triton.jit
def filter_offset(lane, height, tap, FILTERS: tl.constexpr, D: tl.constexpr):
    return ((height * (height - 1) // 2 + tap) * FILTERS + lane % FILTERS) * D


@triton.jit
def history(offsets, sequences, stops, number, size, LENGTH: tl.constexpr):
    """Of the histories ``number``: sequence, stop, real rows; an empty one beyond the last."""
    inside = number < size
    sequence = tl.load(sequences + number, mask=inside, other=0)
    stop = tl.load(stops + number, mask=inside, other=0)
    start = tl.load(offsets + sequence, mask=inside, other=0)
    return sequence, stop, tl.minimum(stop - start, LENGTH)


@triton.jit
def window_row(x, padding_row, stop, real_rows, row_index, column, inside, D: tl.constexpr):
    """Row ``row_index`` of each padded history: float32 [histories, columns]."""
    row = (stop - real_rows + row_index).to(tl.int64)
    padding = tl.load(padding_row + column, mask=column < D, other=0.0)
    known = inside & (row_index < real_rows)
    value = tl.load(x + row[:, None] * D + column[None, :], mask=known[:, None] & (column < D)[None, :], other=0.0)
    return tl.where((row_index < real_rows)[:, None], value.to(tl.float32), padding[None, :].to(tl.float32))


def _power(size: int, least: int, most: int) -> int:
    return max(least, min(most, next_power_of_2(size)))


class Shape:
    """Sizes, and the constants of every launch."""

    def __init__(self, length: int, n_h: int, n_v: int, d: int, precision: str, size: int) -> None:
        self.length, self.n_h, self.n_v, self.d = length, n_h, n_v, d
        self.lanes, self.skipped = length * n_h, n_v * d
        # At least half of the rows are the program's own. More than 128 would not fit on the chip: longer histories
        # are gone through in spans, each of which starts with the first tap again.
        self.span = min(length + 1, SPAN)
        self.rows = max(ROWS, next_power_of_2(2 * self.span - 2))
        self.block = _power(self.lanes, 16, LANES)
        self.width = _power(d, 16, WIDTH)
        self.vertical = _power(n_v, 1, VERTICAL)
        sizes: dict[str, Any] = {"LENGTH": length, "FILTERS": n_h, "D": d}
        exact = size == 4 and precision == "ieee"
        # With 4 warps exact float32 products spill 11 KB in _grad_filters and need every register in _convolve; with 8
        # and 64 columns _convolve (sm_90) and _grad_x (sm_100) spill 8 and 28 bytes. In other types 4 warps spill 12 to
        # 40 bytes of _grad_filters on gfx942, and tf32 with 128 rows and 64 columns 240 bytes of _convolve.
        narrow = size == 4 and (exact or self.rows > 64)
        warps = 4 if self.rows == 64 and not exact else 8
        products = {**sizes, "LANES": self.block, "PRECISION": precision}
        columns = min(self.width, 32) if narrow else self.width
        tile = {"SPAN": self.span, "ROWS": self.rows, "WIDTH": columns}
        self.convolve: dict[str, Any] = {**products, **tile, "num_warps": warps}
        self.grad_x: dict[str, Any] = {**self.convolve, "SKIPPED": self.skipped}
        self.grad_filters = {**products, "SKIPPED": self.skipped, "ROWS": ROWS, "WIDTH": self.width, "num_warps": 8}
        self.rest = {**sizes, "LANES": self.block, "WIDTH": self.width}
        self.finish_x = {**sizes, "NV": n_v, "HISTORIES": HISTORIES, "WIDTH": self.width}
        self.histories = {**self.finish_x, "VERTICAL": self.vertical}
        by_history: dict[str, Any] = {"LENGTH": length, "FILTERS": n_h, "SKIPPED": self.skipped, "HISTORIES": HISTORIES}
        self.by_slot = {**by_history, "COLUMNS": 128}
        self.distances = {**by_history, "LANES": self.block, "STEPS": _power(length + 1, 1, 32)}
        self.add_distances = {"LENGTH": length, "FILTERS": n_h, "RUNS": CHUNKS, "LANES": self.block}
        self.finish = {"LENGTH": length, "D": d, "NV": n_v, "ROWS": 32, "COLUMNS": COLUMNS}
        self.finish_filters = {**sizes, "LANES": _power(n_h, 1, 16), "WIDTH": self.width}
        self.grad_vertical = {**self.histories, "STEPS": next_power_of_2(length + 1), "num_warps": 8}


def shape_of(x: Tensor, offsets: Tensor, weight_h: Tensor, bias_h: Tensor, weight_v: Tensor) -> Shape:
    """Raises ValueError for what the kernels' 32-bit numbers of slots and of the filters' values cannot count."""
    if weight_h.numel() >= 2**31:
        raise ValueError(
            f"weight_h is {list(weight_h.shape)}, expected fewer than 2**31 values: fewer or lower filters"
        )
    slots = x.shape[0] + offsets.shape[0] - 1
    if slots >= 2**31 - 2 * SPAN:
        raise ValueError(f"x has {x.shape[0]} rows, expected fewer than 2**31 with the sequences: a smaller batch")
    length, n_h = bias_h.shape
    return Shape(length, n_h, weight_v.shape[0], x.shape[1], float32_precision(), x.element_size())
