"""What the kernels of both passes of kernels/caser_windows.py share: sizes, parts of the filters, finding histories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .sizes import next_power_of_2

LANES = 32  # filters of a program: at n_h = 8 four heights, which keeps the taps beyond a filter's height few
ROWS = 32  # rows of a program, of 8 values a thread
HISTORIES = 8  # of a program
WIDTH = 64  # columns of x of a program
VERTICAL = 4  # vertical filters of a program
STEPS = 32  # rows of a history, or distances from its stop, of a program
RUNS = 128  # runs of histories that are summed apart
COLUMNS = 16  # of a program that adds up partial sums
PART = 32 << 20  # bytes of the tap products that are made at a time: they stay in the L2 cache, 50 MB on an H200


class Part(NamedTuple):
    """Heights whose filters' tap products are made together: their lanes and their rows of weight_h."""

    first: int
    stop: int
    first_tap: int
    stop_tap: int


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
def lanes(block, first, stop, LENGTH: tl.constexpr, FILTERS: tl.constexpr, LANES: tl.constexpr):
    """A block of the filters first ... stop - 1: their numbers [LANES], heights, which exist, where their taps begin
    in a row of products, and the least and the largest height."""
    lane = first + block * LANES + tl.arange(0, LANES)
    height = lane // FILTERS + 1
    before = first // FILTERS
    place = (height * (height - 1) // 2 - before * (before + 1) // 2) * FILTERS + lane % FILTERS
    least = (first + block * LANES) // FILTERS + 1
    most = tl.minimum((first + block * LANES + LANES - 1) // FILTERS + 1, LENGTH)
    return lane, height, lane < stop, place, least, most


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
        self.by_slot = {**sizes, "SKIPPED": self.skipped, "SLOTS": 16, "COLUMNS": 128}
        self.tap_gradients = {**sizes, **block, "SKIPPED": self.skipped, "ROWS": ROWS, "RUNS": RUNS}
        self.sums = {**sizes, **block, **columns, "NV": n_v, "STEPS": self.steps, "HISTORIES": HISTORIES}
        self.finish_x = {**sizes, **columns, "NV": n_v, "ROWS": 8}
        self.finish = {**sizes, **block, **columns, "NV": n_v, "ROWS": 32, "COLUMNS": COLUMNS}

    def parts(self, rows: int) -> Iterator[Part]:
        """At least one, and each of one height or more."""
        most = PART // (4 * (rows + 1) * max(self.n_h, 1))
        low = 0
        while low < self.length:
            high, before = low + 1, low * (low + 1) // 2
            while high < self.length and (high + 1) * (high + 2) // 2 - before <= most:
                high += 1
            yield Part(low * self.n_h, high * self.n_h, before, high * (high + 1) // 2)
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
