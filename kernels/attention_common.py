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
from fastseq.ops.philox import threshold

from . import philox
from .products import kind, refuse_float64
from .sizes import next_power_of_2

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
    """A tile of scores of the kernels that go block by block, and the warps and pipeline stages of a program."""

    queries: int
    keys: int
    warps: int
    stages: int


class Config(NamedTuple):
    """What is launched for one kind of operand: whole sequences up to a length, blocks beyond it."""

    one_tile_forward: int
    one_tile_backward: int
    rows_per_warp: int  # of such a tile, with 8 warps at most
    forward: Blocks
    backward_queries: Blocks
    backward_keys: Blocks


# By how operands are multiplied and the width of a head, narrower ones as 32. Chosen by what the compiler said with
# dropout: large tiles and few warps among those tried that spill on none of the architectures of the compile report
# and need at most 64 KB of shared memory. Triton multiplies float32 without matrix units by holding whole
# operands in registers: a product over 64 columns already spills with tiles of 64 x 64, hence its small ones. Which is
# fastest is not yet measured.
CONFIGS = {
    ("ieee", 32): Config(64, 64, 8, Blocks(64, 32, 8, 1), Blocks(32, 32, 8, 1), Blocks(64, 32, 8, 1)),
    ("ieee", 64): Config(32, 32, 8, Blocks(64, 32, 8, 1), Blocks(32, 32, 8, 1), Blocks(32, 32, 8, 1)),
    ("ieee", 128): Config(16, 16, 4, Blocks(32, 16, 8, 1), Blocks(16, 16, 8, 1), Blocks(16, 16, 4, 1)),
    ("tf32", 32): Config(64, 64, 16, Blocks(64, 32, 4, 2), Blocks(64, 32, 4, 2), Blocks(32, 32, 4, 2)),
    ("tf32", 64): Config(64, 32, 4, Blocks(32, 64, 4, 2), Blocks(64, 32, 8, 1), Blocks(32, 32, 8, 1)),
    ("tf32", 128): Config(64, 32, 8, Blocks(32, 32, 8, 2), Blocks(32, 32, 4, 1), Blocks(16, 32, 8, 1)),
    ("half", 32): Config(128, 64, 16, Blocks(64, 64, 4, 2), Blocks(64, 32, 4, 2), Blocks(32, 32, 4, 2)),
    ("half", 64): Config(128, 64, 16, Blocks(64, 64, 4, 2), Blocks(64, 32, 8, 2), Blocks(32, 32, 8, 2)),
    ("half", 128): Config(64, 64, 4, Blocks(64, 32, 8, 2), Blocks(64, 32, 8, 1), Blocks(32, 32, 8, 1)),
}
# Without dropout the compiler keeps more in registers: with some of those tiles 8 to 104 bytes would spill.
WITHOUT_DROPOUT = CONFIGS | {
    ("ieee", 32): CONFIGS["ieee", 32]._replace(
        one_tile_forward=32, forward=Blocks(64, 16, 8, 1), backward_keys=Blocks(32, 32, 8, 1)
    ),
    ("ieee", 128): CONFIGS["ieee", 128]._replace(backward_keys=Blocks(16, 16, 8, 1)),
    ("tf32", 32): CONFIGS["tf32", 32]._replace(backward_keys=Blocks(32, 32, 4, 1)),
    ("tf32", 128): CONFIGS["tf32", 128]._replace(backward_queries=Blocks(32, 32, 8, 1)),
}
# Keys at a time of the last query: 64 x 128 elements are 64 registers a thread with 4 warps, and need no more room.
LAST_KEYS = 64


@triton.jit
def keep_mask(rng, row, first_key, head, site, threshold, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Which softmax weights survive dropout: bool [QUERIES, KEYS]. first_key is a multiple of 4."""
    block = first_key // 4 + tl.arange(0, KEYS // 4)[None, :]
    return philox.words(rng, row[:, None], block, site | (head << 16), QUERIES, KEYS // 4) >= threshold


@triton.jit
def head_rows(x, row, valid, head, row_stride, head_stride, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of one head, zero where there are none and in columns D ... WIDTH."""
    column = tl.arange(0, WIDTH)[None, :]
    offset = row[:, None] * row_stride + head.to(tl.int64) * head_stride + column
    return tl.load(x + offset, mask=valid[:, None] & (column < D), other=0.0)


@triton.jit
def store_rows(x, value, row, valid, head, row_heads, D: tl.constexpr, WIDTH: tl.constexpr):
    """The converse, to a contiguous [rows, row_heads, D]."""
    column = tl.arange(0, WIDTH)[None, :]
    offset = (row[:, None] * row_heads + head) * D + column
    tl.store(x + offset, value.to(x.dtype.element_ty), mask=valid[:, None] & (column < D))


class Inputs:
    """What the wrappers share: operands as they are read, and the arguments of every kernel."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_len: int, p: float, rng: Tensor | None, site: int,
        scale: float,
    ) -> None:  # fmt: skip
        self.q, self.k, self.v = (head_operand(x) for x in (q, k, v))
        self.strides = [s for x in (self.q, self.k, self.v) for s in x.stride()[:2]]
        self.offsets, self.rng, self.max_len = offsets.contiguous(), philox.adjacent(rng), max_len
        self.longest = min(max_len, k.shape[0])  # programs beyond all rows have nothing to do
        self.sequences, self.heads = offsets.shape[0] - 1, q.shape[1]
        self.drawn = (scale, threshold(p), 1.0 / (1.0 - p), site)
        width = max(16, next_power_of_2(q.shape[2]))
        way = kind(self.q)
        self.config = (CONFIGS if p > 0.0 else WITHOUT_DROPOUT)[way, max(32, width)]
        self.shape: dict[str, Any] = {"DROPOUT": p > 0.0, "D": q.shape[2], "WIDTH": width}
        self.products: dict[str, Any] = {
            **self.shape,
            "PRECISION": "tf32" if way == "tf32" else "ieee",
        }  # half types have one way

    def one_tile(self) -> dict[str, Any]:
        """The constants of a kernel that holds whole sequences."""
        length = max(16, next_power_of_2(self.max_len))
        warps = min(8, max(1, length // self.config.rows_per_warp))
        return {**self.products, "LENGTH": length, "num_warps": warps, "num_stages": 1}

    def by_blocks(self, blocks: Blocks) -> dict[str, Any]:
        """The constants of a kernel that goes block by block."""
        tile = {"QUERIES": blocks.queries, "KEYS": blocks.keys}
        return {**self.products, **tile, "num_warps": blocks.warps, "num_stages": blocks.stages}


def head_operand(x: Tensor) -> Tensor:
    """With adjacent columns, where it lies if possible; no bfloat16 for the interpreter, which multiplies its bits."""
    refuse_float64(x, "q")
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        x = x.float()
    return x if x.stride(2) == 1 else x.contiguous()
