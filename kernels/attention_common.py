"""What the kernels of kernels/attention.py and last_query_attention.py share: launches, rows of a head, masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastseq.ops._dispatch import plain
from fastseq.ops.philox import keep_scale, threshold

from . import philox
from .lists import sequence_of
from .products import kind, refuse_float64
from .sizes import cdiv, next_power_of_2

MAX_HEAD_DIM = 128  # wider tiles need more shared memory than a chip has


def narrow_heads(launch: Callable[..., Any]) -> Callable[..., Any]:
    """``launch``, whose first argument is [rows, H, D], up to MAX_HEAD_DIM; wider heads are left to plain PyTorch."""

    @wraps(launch)
    def serve(x: Tensor, *arguments: Any) -> Any:
        if x.shape[2] <= MAX_HEAD_DIM:
            return launch(x, *arguments)
        reason = f"head dim {x.shape[2]} is over {MAX_HEAD_DIM}, the widest of the Triton kernels"
        return plain(launch.__name__, x.device.type, reason, "use more heads")(x, *arguments)

    return serve


class Blocks(NamedTuple):
    """A tile of scores, and the warps and pipeline stages of a program."""

    queries: int
    keys: int
    warps: int
    stages: int


class Config(NamedTuple):
    """What is launched for one kind of operand."""

    forward: Blocks
    backward_queries: Blocks
    backward_keys: Blocks
    one_pass: Blocks | None = None  # of a backward that makes scores and masks once


# By how operands are multiplied and the width of a head, narrower ones as 32. Chosen by what the compiler said: among
# tiles that spill on none of the architectures of the compile report and need at most 64 KB of shared memory, those
# with the fewest instructions a row at the lengths of ml-1m and beauty. That is one warp for 16 queries, a row of the
# matrix unit's tiles: larger tiles waste more on the edges of sequences. Triton multiplies float32 without matrix units
# by holding whole operands in registers, hence its many warps. Which is fastest is not yet measured.
_NARROW = Config(Blocks(16, 32, 1, 2), Blocks(16, 32, 1, 2), Blocks(16, 32, 1, 2), Blocks(16, 32, 1, 1))
CONFIGS = {
    ("ieee", 32): Config(Blocks(32, 32, 8, 1), Blocks(32, 32, 8, 1), Blocks(32, 32, 8, 1)),
    ("ieee", 64): Config(Blocks(32, 32, 8, 1), Blocks(32, 32, 8, 1), Blocks(32, 16, 8, 1)),
    ("ieee", 128): Config(Blocks(16, 16, 8, 1), Blocks(16, 16, 8, 1), Blocks(16, 16, 4, 1)),
    ("tf32", 32): _NARROW,
    ("tf32", 64): Config(Blocks(32, 32, 2, 2), Blocks(32, 32, 2, 2), Blocks(32, 32, 4, 1)),
    ("tf32", 128): Config(Blocks(32, 32, 4, 1), Blocks(32, 32, 4, 1), Blocks(16, 32, 4, 1)),
    ("half", 32): _NARROW,
    ("half", 64): Config(Blocks(16, 32, 1, 2), Blocks(32, 32, 2, 2), Blocks(32, 32, 2, 1)),
    ("half", 128): Config(Blocks(32, 32, 4, 1), Blocks(32, 32, 4, 1), Blocks(32, 32, 4, 1)),
}
# One pass takes memory, float32, for so many parts of dq at most: sequences of 225 events with tiles of 32 keys.
MOST_PARTS = 8
# The sum over them.
SUM = Blocks(32, 32, 1, 1)
# Keys at a time of the last query: 64 x 128 elements are 64 registers a thread with 4 warps, and need no more room.
LAST_KEYS = 64


@triton.jit
def key_order(KEYS: tl.constexpr):
    """The order in which a tile holds KEYS keys in a row of the jagged batch: int32 [KEYS].

    A thread of a matrix unit holds columns 2 t and 2 t + 1 of every 8. They get the keys that one call of Philox
    serves, so no mask moves between threads: of 32 keys, column 8 w + 2 t + h has key 8 t + 2 w + h, half h of word w.
    """
    CALLS: tl.constexpr = min(4, KEYS // 8)
    column = tl.arange(0, KEYS)
    return column // (8 * CALLS) * (8 * CALLS) + column // 2 % CALLS * 8 + column // (2 * CALLS) % 4 * 2 + column % 2


@triton.jit
def keep_mask(rng, row, first_key, head, site, threshold, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Which softmax weights survive dropout: bool [QUERIES, KEYS], of rows ``row`` [QUERIES] and the keys
    first_key + key_order(KEYS). first_key is a multiple of 8."""
    CALLS: tl.constexpr = min(4, KEYS // 8)
    TILE: tl.constexpr = (QUERIES, KEYS // (8 * CALLS), 1, CALLS, 1)
    seed, step = tl.load(rng), tl.load(rng + 1).to(tl.uint32)
    zero = tl.zeros((QUERIES, KEYS // 8), tl.uint32)
    block = (first_key // 8 + tl.arange(0, KEYS // 8)).to(tl.uint32)[None, :]
    w0, w1, w2, w3 = philox.rounds(
        seed, zero + block, row.to(tl.uint32)[:, None], step, (site | (head << 16)).to(tl.uint32)
    )
    # Selected by a column's number, which the compiler knows. tl.join would do, but it makes Triton 3.7 choose a layout
    # of the weights, as an operand of their product with the values, that moves them between threads.
    word, half = tl.arange(0, 4)[None, None, :, None, None], tl.arange(0, 2)[None, None, None, None, :]
    low = tl.where(word == 0, tl.reshape(w0, TILE), tl.reshape(w1, TILE))
    high = tl.where(word == 2, tl.reshape(w2, TILE), tl.reshape(w3, TILE))
    drawn = tl.where(word < 2, low, high)
    drawn = tl.where(half == 0, drawn << 16, drawn)  # a half is compared in the upper bits
    return tl.reshape(drawn, (QUERIES, KEYS)) >= (tl.cast(threshold, tl.uint32) << 16)


@triton.jit
def sequence_bounds(row, first, last, offsets, sequences, steps, END: tl.constexpr):
    """Where the sequences of the rows first ... last - 1, of which ``row`` is a vector, start, or with END stop:
    int32 of the shape of ``row``; and of row ``first`` and of row last - 1 alone, as numbers.

    A search for the first row, then a step for each sequence that starts after it. The numbers are no reductions of
    the vector: Triton 3.7 knows nothing of an address that comes from one, and loads its elements one by one."""
    sequence = sequence_of(first, offsets, sequences, steps)
    lowest = tl.load(offsets + sequence + END)
    highest = lowest
    bounds = tl.zeros(row.shape, tl.int32) + lowest
    following = tl.load(offsets + sequence + 1)
    while following < last:
        sequence += 1
        highest = tl.load(offsets + sequence + END)
        bounds = tl.where(row >= following, highest, bounds)
        following = tl.load(offsets + sequence + 1)
    return bounds, lowest, highest


@triton.jit
def head_rows(x, first, index, valid, head, row_stride, head_stride, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows first + index of one head, zero where they are not valid and in columns D ... WIDTH.

    ``first`` is a number: what is added to it does not change in a loop over tiles."""
    column = tl.arange(0, WIDTH)[None, :]
    x += tl.cast(first, tl.int64) * row_stride + head.to(tl.int64) * head_stride
    offset = index.to(tl.int64)[:, None] * row_stride + column
    return tl.load(x + offset, mask=valid[:, None] & (column < D), other=0.0)


@triton.jit
def store_rows(x, value, first, index, valid, head, row_heads, D: tl.constexpr, WIDTH: tl.constexpr):
    """The converse, to a contiguous [rows, row_heads, D]."""
    column = tl.arange(0, WIDTH)[None, :]
    x += (tl.cast(first, tl.int64) * row_heads + head) * D
    offset = index[:, None] * (row_heads * D) + column
    tl.store(x + offset, value.to(x.dtype.element_ty), mask=valid[:, None] & (column < D))


class Inputs:
    """What the wrappers share: operands as they are read, and the arguments of every kernel."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_len: int, p: float, rng: Tensor | None, site: int,
        scale: float,
    ) -> None:  # fmt: skip
        self.q, self.k, self.v = (head_operand(x) for x in (q, k, v))
        self.strides = [s for x in (self.q, self.k, self.v) for s in x.stride()[:2]]
        self.offsets, self.rng = offsets.contiguous(), philox.adjacent(rng)
        self.rows, self.heads, self.sequences = k.shape[0], q.shape[1], offsets.shape[0] - 1
        self.longest = min(max_len, self.rows)
        self.drawn = (scale, threshold(p), keep_scale(p), site)
        width = max(16, next_power_of_2(q.shape[2]))
        way = kind(self.q)
        self.config = CONFIGS[way, max(32, width)]
        self.shape: dict[str, Any] = {"DROPOUT": p > 0.0, "D": q.shape[2], "WIDTH": width}
        self.precision = "tf32" if way == "tf32" else "ieee"  # half types have one way

    def parts(self, keys: int) -> int:
        """How many tiles of so many keys the keys of one row may lie in."""
        return (self.longest + keys - 2) // keys + 1

    def launch(self, kernel: Any, blocks: Blocks, rows: int, *tensors: Tensor | None, **constants: Any) -> None:
        """``kernel`` over tiles of so many ``rows`` of the batch, for every head."""
        kernel[cdiv(self.rows, rows), self.heads](
            *tensors, self.offsets, self.rng, *self.strides, self.rows, self.sequences, self.sequences.bit_length(),
            *self.drawn, **self.shape, **constants, QUERIES=blocks.queries, KEYS=blocks.keys, PRECISION=self.precision,
            num_warps=blocks.warps, num_stages=blocks.stages,
        )  # fmt: skip


def head_operand(x: Tensor) -> Tensor:
    """With adjacent columns, where it lies if possible; no bfloat16 for the interpreter, which multiplies its bits."""
    refuse_float64(x, "q")
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        x = x.float()
    return x if x.stride(2) == 1 else x.contiguous()
