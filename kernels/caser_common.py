"""What the kernels of both passes of kernels/caser_windows.py share: sizes, parts of the filters, finding histories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .sizes import next_power_of_2

LANES = 32  # filters of a program: at n_h = 8 four heights, which keeps the taps beyond a filter's height few
ROWS = 32  # rows of a program: 8 values a thread
HISTORIES = 16  # of a program
WIDTH = 64  # columns of x of a program
VERTICAL = 4  # vertical filters of a program
STEPS = 32  # rows of a history, or distances from its stop, of a program
RUNS = 128  # runs of histories that are summed apart
COLUMNS = 16  # of a program that adds up partial sums
PART = 32 << 20  # bytes of the tap products that are made at a time: they stay in the L2 cache, 50 MB on an H200


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
def products_width(low, high, FILTERS: tl.constexpr):
    """Taps of the heights low + 1 ... high, all filters: the columns of their products."""
    return (high * (high + 1) // 2 - low * (low + 1) // 2) * FILTERS


@triton.jit
def lanes(block, low, high, LENGTH: tl.constexpr, FILTERS: tl.constexpr, LANES: tl.constexpr):
    """A block of the filters of heights low + 1 ... high, (height - 1) n_h + filter: their numbers [LANES], heights,
    which exist, where in a row of products their taps begin, and the least and the largest height. Written so that the
    compiler knows which neighbours lie side by side."""
    number = block * LANES + tl.arange(0, LANES)
    height = low + number // FILTERS + 1
    place = (height * (height - 1) // 2 - low * (low + 1) // 2) * FILTERS + number % FILTERS
    least = low + block * LANES // FILTERS + 1
    most = tl.minimum(low + (block * LANES + LANES - 1) // FILTERS + 1, LENGTH)
    return low * FILTERS + number, height, number < (high - low) * FILTERS, place, least, most


@triton.jit
def history(offsets, sequences, stops, number, size, LENGTH: tl.constexpr):
    """Of the histories ``number``: sequence, stop, real rows; an empty one beyond the last."""
    inside = number < size
    sequence = tl.load(sequences + number, mask=inside, other=0)
    stop = tl.load(stops + number, mask=inside, other=0)
    start = tl.load(offsets + sequence, mask=inside, other=0)
    return sequence, stop, tl.minimum(stop - start, LENGTH).to(tl.int32)


class Shape:
    """Sizes, and the constants of every launch."""

    def __init__(self, length: int, n_h: int, n_v: int, d: int) -> None:
        self.length, self.n_h, self.n_v, self.d = length, n_h, n_v, d
        self.lanes, self.skipped = length * n_h, n_v * d
        self.block = min(LANES, next_power_of_2(self.lanes))
        self.width = min(WIDTH, next_power_of_2(d))
        self.vertical = min(VERTICAL, next_power_of_2(n_v))
        self.steps = min(STEPS, next_power_of_2(length + 1))
        sizes: dict[str, Any] = {"LENGTH": length, "FILTERS": n_h}
        block, columns = {"LANES": self.block}, {"D": d, "WIDTH": self.width}
        self.convolve = {**sizes, **block, **columns, "ROWS": ROWS}
        self.histories = {**sizes, **block, **columns, "NV": n_v, "HISTORIES": HISTORIES, "VERTICAL": self.vertical}
        self.by_slot = {**sizes, "SKIPPED": self.skipped, "COLUMNS": 512, "num_warps": 1}
        self.tap_gradients = {**sizes, **block, "SKIPPED": self.skipped, "ROWS": ROWS, "RUNS": RUNS}
        self.sums = {**sizes, **block, **columns, "NV": n_v, "STEPS": self.steps, "HISTORIES": HISTORIES}
        self.finish_x = {**sizes, **columns, "NV": n_v, "num_warps": 1}
        self.finish = {**sizes, **block, **columns, "NV": n_v, "ROWS": 32, "COLUMNS": COLUMNS}

    def parts(self, rows: int) -> Iterator[tuple[int, int, slice]]:
        """Heights whose products are made together, low + 1 ... high, one or more, and their rows of weight_h."""
        most = PART // (4 * (rows + 1) * max(self.n_h, 1))
        low = 0
        while low < self.length:
            high, before = low + 1, low * (low + 1) // 2
            while high < self.length and (high + 1) * (high + 2) // 2 - before <= most:
                high += 1
            yield low, high, slice(before, high * (high + 1) // 2)
            low = high


def shape_of(x: Tensor, offsets: Tensor, weight_h: Tensor, bias_h: Tensor, weight_v: Tensor) -> Shape:
    """Raises ValueError for what the kernels' 32-bit numbers of slots and of the filters' values cannot count."""
    if weight_h.numel() >= 2**31:
        raise ValueError(
            f"weight_h is {list(weight_h.shape)}, expected fewer than 2**31 values: fewer or lower filters"
        )
    slots = x.shape[0] + offsets.shape[0] - 1
    if slots >= 2**31 - 128 - bias_h.shape[0]:
        raise ValueError(f"x has {x.shape[0]} rows, expected fewer than 2**31 with the sequences: a smaller batch")
    length, n_h = bias_h.shape
    return Shape(length, n_h, weight_v.shape[0], x.shape[1])
