"""Causal attention over jagged sequences: scores and weights live in registers only, forward and backward.

Sequences of at most 128 events fit one tile, so one program has all scores of a sequence and head: softmax in one
step, and a backward that makes the scores once for all three gradients. Longer ones go block by block: the forward
rescales its sums when a larger score comes (online softmax), and the backward is two kernels, one over query blocks
for dq, one over key blocks for dk and dv, each writing what only it owns, so there are no atomics. The last query
alone is a pass over keys and values without matrix instructions: it is bound by memory.

Offsets stay on the device: the grid follows max_len, and programs past the end of their sequence return at once.
float32 operands are multiplied in float32 unless torch.set_float32_matmul_precision allows TF32; others on the matrix
units with float32 sums. Softmax and its statistics are float32 always.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastseq.ops.philox import threshold

from . import philox


class Blocks(NamedTuple):
    """A tile of scores of the kernels that go block by block, and the warps and pipeline stages of a program."""

    queries: int
    keys: int
    warps: int
    stages: int


class Config(NamedTuple):
    """What is launched for one size of operands: whole sequences up to a length, blocks beyond it."""

    one_tile_forward: int
    one_tile_backward: int
    forward: Blocks
    backward_queries: Blocks
    backward_keys: Blocks


CONFIGS = {
    (4, 32): Config(128, 64, Blocks(64, 32, 4, 2), Blocks(64, 32, 4, 1), Blocks(32, 64, 4, 1)),
    (4, 64): Config(64, 32, Blocks(64, 32, 4, 2), Blocks(64, 32, 8, 1), Blocks(32, 32, 4, 1)),
    (4, 128): Config(64, 32, Blocks(64, 32, 8, 1), Blocks(32, 32, 8, 1), Blocks(16, 32, 4, 1)),
    (2, 32): Config(128, 128, Blocks(64, 64, 4, 2), Blocks(64, 64, 4, 2), Blocks(64, 64, 4, 2)),
    (2, 64): Config(128, 128, Blocks(64, 64, 4, 2), Blocks(64, 64, 4, 2), Blocks(64, 64, 4, 2)),
    (2, 128): Config(128, 64, Blocks(64, 64, 4, 2), Blocks(64, 64, 8, 1), Blocks(64, 64, 8, 1)),
}
LAST_KEYS = 64
FLOAT32 = "tf32x3"


@triton.jit
def _kept(rng, row, first_key, head, site, threshold, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Which softmax weights survive dropout: bool [QUERIES, KEYS]. first_key is a multiple of 4."""
    block = first_key // 4 + tl.arange(0, KEYS // 4)[None, :]
    return philox.words(rng, row[:, None], block, site | (head << 16), QUERIES, KEYS // 4) >= threshold


@triton.jit
def _rows(x, row, valid, head, row_stride, head_stride, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of one head, zero where there are none and in columns D ... WIDTH."""
    column = tl.arange(0, WIDTH)[None, :]
    place = row[:, None] * row_stride + head.to(tl.int64) * head_stride + column
    return tl.load(x + place, mask=valid[:, None] & (column < D), other=0.0)


@triton.jit
def _store_rows(x, value, row, valid, head, heads, D: tl.constexpr, WIDTH: tl.constexpr):
    """The converse, to a contiguous [rows, heads, D]."""
    column = tl.arange(0, WIDTH)[None, :]
    place = (row[:, None] * heads + head) * D + column
    tl.store(x + place, value.to(x.dtype.element_ty), mask=valid[:, None] & (column < D))


@triton.jit(do_not_specialize=["site"])
def _forward_tile(
    q, k, v, out, lse, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, scale, threshold, keep_scale, site,
    DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, LENGTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One sequence and head."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    start = tl.load(offsets + tl.program_id(0))
    length = tl.load(offsets + tl.program_id(0) + 1) - start
    if length <= 0:
        return
    index = tl.arange(0, LENGTH)
    valid = index < length
    row = start.to(tl.int64) + index
    query = _rows(q, row, valid, head, q_row, q_head, D, WIDTH)
    key = _rows(k, row, valid, head, k_row, k_head, D, WIDTH)
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    score = tl.where(index[None, :] <= index[:, None], score, float("-inf"))
    top = tl.max(score, axis=1)
    weight = tl.exp(score - top[:, None])
    total = tl.sum(weight, axis=1)
    tl.store(lse + row * heads + head, top + tl.log(total), mask=valid)
    if DROPOUT:
        weight = tl.where(_kept(rng, row, 0, head, site, threshold, LENGTH, LENGTH), weight, 0.0)
    value = _rows(v, row, valid, head, v_row, v_head, D, WIDTH)
    sums = tl.dot(weight.to(value.dtype), value, input_precision=PRECISION)
    _store_rows(out, sums * (keep_scale / total)[:, None], row, valid, head, heads, D, WIDTH)


@triton.jit(do_not_specialize=["site", "blocks"])
def _forward_blocks(
    q, k, v, out, lse, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, blocks, scale, threshold,
    keep_scale, site,
    DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of queries of one sequence and head, the last blocks, which see the most keys, first."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    sequence = tl.program_id(0) // blocks
    first = (blocks - 1 - tl.program_id(0) % blocks) * QUERIES
    start = tl.load(offsets + sequence)
    length = tl.load(offsets + sequence + 1) - start
    if first >= length:
        return
    index = first + tl.arange(0, QUERIES)
    valid = index < length
    row = start.to(tl.int64) + index
    query = _rows(q, row, valid, head, q_row, q_head, D, WIDTH)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    for at in range(0, tl.minimum(first + QUERIES, length), KEYS):
        key_index = at + tl.arange(0, KEYS)
        key_row = start.to(tl.int64) + key_index
        key = _rows(k, key_row, key_index < length, head, k_row, k_head, D, WIDTH)
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        score = tl.where(key_index[None, :] <= index[:, None], score, float("-inf"))
        larger = tl.maximum(top, tl.max(score, axis=1))  # finite: key 0 is seen by all, in the first block
        weight = tl.exp(score - larger[:, None])
        shrink = tl.exp(top - larger)
        total = total * shrink + tl.sum(weight, axis=1)
        if DROPOUT:
            weight = tl.where(_kept(rng, row, at, head, site, threshold, QUERIES, KEYS), weight, 0.0)
        value = _rows(v, key_row, key_index < length, head, v_row, v_head, D, WIDTH)
        sums = sums * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision=PRECISION)
        top = larger
    tl.store(lse + row * heads + head, top + tl.log(total), mask=valid)
    _store_rows(out, sums * (keep_scale / total)[:, None], row, valid, head, heads, D, WIDTH)


@triton.jit
def _weights(query, key, lse, index, key_index, valid, scale, PRECISION: tl.constexpr):
    """Softmax weights [QUERIES, KEYS] from the saved log-sum-exp; 0 where a key is not seen."""
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale - lse[:, None]
    seen = (key_index[None, :] <= index[:, None]) & valid[:, None]
    return tl.exp(tl.where(seen, score, float("-inf")))


@triton.jit(do_not_specialize=["site"])
def _backward_tile(
    grad, q, k, v, lse, dq, dk, dv, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, scale, threshold,
    keep_scale, site,
    DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, LENGTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All three gradients of one sequence and head."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    start = tl.load(offsets + tl.program_id(0))
    length = tl.load(offsets + tl.program_id(0) + 1) - start
    if length <= 0:
        return
    index = tl.arange(0, LENGTH)
    valid = index < length
    row = start.to(tl.int64) + index
    query = _rows(q, row, valid, head, q_row, q_head, D, WIDTH)
    key = _rows(k, row, valid, head, k_row, k_head, D, WIDTH)
    weight = _weights(
        query, key, tl.load(lse + row * heads + head, mask=valid, other=0.0), index, index, valid, scale, PRECISION
    )
    value = _rows(v, row, valid, head, v_row, v_head, D, WIDTH)
    upstream = _rows(grad, row, valid, head, heads * D, D, D, WIDTH)
    slope = tl.dot(upstream, tl.trans(value), input_precision=PRECISION)  # of the weights, dropped or not
    used = weight
    if DROPOUT:
        kept = _kept(rng, row, 0, head, site, threshold, LENGTH, LENGTH)
        slope = tl.where(kept, slope * keep_scale, 0.0)
        used = tl.where(kept, weight * keep_scale, 0.0)
    sums = tl.dot(tl.trans(used.to(upstream.dtype)), upstream, input_precision=PRECISION)
    _store_rows(dv, sums, row, valid, head, heads, D, WIDTH)
    # The weights sum to 1 but for the rounding of lse, which would not cancel in slope - mean: divided out.
    mean = tl.sum(weight * slope, axis=1) / tl.where(valid, tl.sum(weight, axis=1), 1.0)
    slope = (weight * (slope - mean[:, None]) * scale).to(query.dtype)
    _store_rows(dq, tl.dot(slope, key, input_precision=PRECISION), row, valid, head, heads, D, WIDTH)
    _store_rows(dk, tl.dot(tl.trans(slope), query, input_precision=PRECISION), row, valid, head, heads, D, WIDTH)


@triton.jit(do_not_specialize=["site", "blocks"])
def _backward_queries(
    grad, q, k, v, out, lse, means, dq, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, blocks, scale,
    threshold, keep_scale, site,
    DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of one block of queries, and what the kernel for dk and dv needs of it: the mean slope of each softmax."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    sequence = tl.program_id(0) // blocks
    first = (blocks - 1 - tl.program_id(0) % blocks) * QUERIES
    start = tl.load(offsets + sequence)
    length = tl.load(offsets + sequence + 1) - start
    if first >= length:
        return
    index = first + tl.arange(0, QUERIES)
    valid = index < length
    row = start.to(tl.int64) + index
    query = _rows(q, row, valid, head, q_row, q_head, D, WIDTH)
    upstream = _rows(grad, row, valid, head, heads * D, D, D, WIDTH)
    result = _rows(out, row, valid, head, heads * D, D, D, WIDTH)
    mean = tl.sum(upstream.to(tl.float32) * result.to(tl.float32), axis=1)
    tl.store(means + row * heads + head, mean, mask=valid)
    norm = tl.load(lse + row * heads + head, mask=valid, other=0.0)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    for at in range(0, tl.minimum(first + QUERIES, length), KEYS):
        key_index = at + tl.arange(0, KEYS)
        key_row = start.to(tl.int64) + key_index
        key = _rows(k, key_row, key_index < length, head, k_row, k_head, D, WIDTH)
        value = _rows(v, key_row, key_index < length, head, v_row, v_head, D, WIDTH)
        weight = _weights(query, key, norm, index, key_index, valid, scale, PRECISION)
        slope = tl.dot(upstream, tl.trans(value), input_precision=PRECISION)
        if DROPOUT:
            kept = _kept(rng, row, at, head, site, threshold, QUERIES, KEYS)
            slope = tl.where(kept, slope * keep_scale, 0.0)
        slope = (weight * (slope - mean[:, None]) * scale).to(key.dtype)
        sums += tl.dot(slope, key, input_precision=PRECISION)
    _store_rows(dq, sums, row, valid, head, heads, D, WIDTH)


@triton.jit(do_not_specialize=["site", "blocks"])
def _backward_keys(
    grad, q, k, v, lse, means, dk, dv, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, blocks, scale,
    threshold, keep_scale, site,
    DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of one block of keys; the first blocks, which are seen by the most queries, first."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    sequence = tl.program_id(0) // blocks
    first = tl.program_id(0) % blocks * KEYS
    start = tl.load(offsets + sequence)
    length = tl.load(offsets + sequence + 1) - start
    if first >= length:
        return
    key_index = first + tl.arange(0, KEYS)
    key_valid = key_index < length
    key_row = start.to(tl.int64) + key_index
    key = _rows(k, key_row, key_valid, head, k_row, k_head, D, WIDTH)
    value = _rows(v, key_row, key_valid, head, v_row, v_head, D, WIDTH)
    key_sums = tl.zeros((KEYS, WIDTH), tl.float32)
    value_sums = tl.zeros((KEYS, WIDTH), tl.float32)
    for at in range(first // QUERIES * QUERIES, length, QUERIES):
        index = at + tl.arange(0, QUERIES)
        valid = index < length
        row = start.to(tl.int64) + index
        query = _rows(q, row, valid, head, q_row, q_head, D, WIDTH)
        upstream = _rows(grad, row, valid, head, heads * D, D, D, WIDTH)
        norm = tl.load(lse + row * heads + head, mask=valid, other=0.0)
        mean = tl.load(means + row * heads + head, mask=valid, other=0.0)
        weight = _weights(query, key, norm, index, key_index, valid, scale, PRECISION)
        slope = tl.dot(upstream, tl.trans(value), input_precision=PRECISION)
        used = weight
        if DROPOUT:
            kept = _kept(rng, row, first, head, site, threshold, QUERIES, KEYS)
            slope = tl.where(kept, slope * keep_scale, 0.0)
            used = tl.where(kept, weight * keep_scale, 0.0)
        value_sums += tl.dot(tl.trans(used.to(upstream.dtype)), upstream, input_precision=PRECISION)
        slope = (weight * (slope - mean[:, None]) * scale).to(query.dtype)
        key_sums += tl.dot(tl.trans(slope), query, input_precision=PRECISION)
    _store_rows(dk, key_sums, key_row, key_valid, head, heads, D, WIDTH)
    _store_rows(dv, value_sums, key_row, key_valid, head, heads, D, WIDTH)


@triton.jit
def _query(q, sequence, head, q_row, q_head, D: tl.constexpr, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    place = sequence * q_row + head.to(tl.int64) * q_head + column
    return tl.load(q + place, mask=column < D, other=0.0).to(tl.float32)


@triton.jit
def _last_score(query, k, key_row, valid, head, k_row, k_head, scale, D: tl.constexpr, WIDTH: tl.constexpr):
    """Keys [KEYS, WIDTH] and the query's scores with them, -inf where there is none."""
    key = _rows(k, key_row, valid, head, k_row, k_head, D, WIDTH).to(tl.float32)
    return key, tl.where(valid, tl.sum(key * query[None, :], axis=1) * scale, float("-inf"))


@triton.jit
def _last_kept(rng, row, first_key, head, site, threshold, KEYS: tl.constexpr):
    block = first_key // 4 + tl.arange(0, KEYS // 4)[None, :]
    drawn = philox.words(rng, row, block, site | (head << 16), 1, KEYS // 4)
    return tl.reshape(drawn, (KEYS,)) >= threshold


@triton.jit(do_not_specialize=["site"])
def _last_forward(
    q, k, v, out, lse, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, scale, threshold, keep_scale, site,
    DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The last query of one sequence and head."""
    sequence, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    column = tl.arange(0, WIDTH)
    start = tl.load(offsets + sequence).to(tl.int64)
    stop = tl.load(offsets + sequence + 1).to(tl.int64)
    length = (stop - start).to(tl.int32)
    query = _query(q, sequence, head, q_row, q_head, D, WIDTH)
    top = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    sums = tl.zeros((WIDTH,), tl.float32)
    for at in range(0, length, KEYS):
        key_index = at + tl.arange(0, KEYS)
        valid = key_index < length
        _, score = _last_score(query, k, start + key_index, valid, head, k_row, k_head, scale, D, WIDTH)
        larger = tl.maximum(top, tl.max(score, axis=0))
        weight = tl.exp(score - larger)
        shrink = tl.exp(top - larger)
        total = total * shrink + tl.sum(weight, axis=0)
        if DROPOUT:
            weight = tl.where(_last_kept(rng, stop - 1, at, head, site, threshold, KEYS), weight, 0.0)
        value = _rows(v, start + key_index, valid, head, v_row, v_head, D, WIDTH).to(tl.float32)
        sums = sums * shrink + tl.sum(weight[:, None] * value, axis=0)
        top = larger
    some = length > 0  # zeros for an empty sequence
    total = tl.where(some, total, 1.0)
    norm = tl.where(some, top, 0.0) + tl.log(total)
    tl.store(lse + sequence * heads + head + tl.arange(0, 1), norm)
    place = (sequence * heads + head) * D + column
    tl.store(out + place, (sums * (keep_scale / total)).to(out.dtype.element_ty), mask=column < D)


@triton.jit(do_not_specialize=["site"])
def _last_backward(
    grad, q, k, v, lse, dq, dk, dv, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, scale, threshold,
    keep_scale, site,
    DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """All three gradients of one sequence and head: its keys and values have no other query."""
    sequence, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    column = tl.arange(0, WIDTH)
    inside = column < D
    start = tl.load(offsets + sequence).to(tl.int64)
    stop = tl.load(offsets + sequence + 1).to(tl.int64)
    length = (stop - start).to(tl.int32)
    place = (sequence * heads + head) * D + column
    query = _query(q, sequence, head, q_row, q_head, D, WIDTH)
    upstream = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    norm = tl.load(lse + sequence * heads + head)
    # The mean slope, which grad · out would give too, but from a result that has been rounded; over weights that sum
    # to 1 but for the rounding of lse, which would not cancel in slope - mean.
    mean = tl.zeros((1,), tl.float32)
    total = tl.zeros((1,), tl.float32)
    for at in range(0, length, KEYS):
        key_index = at + tl.arange(0, KEYS)
        valid = key_index < length
        row = start + key_index
        _, score = _last_score(query, k, row, valid, head, k_row, k_head, scale, D, WIDTH)
        weight = tl.exp(score - norm)
        value = _rows(v, row, valid, head, v_row, v_head, D, WIDTH).to(tl.float32)
        slope = tl.sum(value * upstream[None, :], axis=1)
        if DROPOUT:
            slope = tl.where(_last_kept(rng, stop - 1, at, head, site, threshold, KEYS), slope * keep_scale, 0.0)
        mean += tl.sum(weight * slope, axis=0)
        total += tl.sum(weight, axis=0)
    mean /= tl.where(length > 0, total, 1.0)
    sums = tl.zeros((WIDTH,), tl.float32)
    for at in range(0, length, KEYS):
        key_index = at + tl.arange(0, KEYS)
        valid = key_index < length
        row = start + key_index
        key, score = _last_score(query, k, row, valid, head, k_row, k_head, scale, D, WIDTH)
        weight = tl.exp(score - norm)
        value = _rows(v, row, valid, head, v_row, v_head, D, WIDTH).to(tl.float32)
        slope = tl.sum(value * upstream[None, :], axis=1)
        used = weight
        if DROPOUT:
            kept = _last_kept(rng, stop - 1, at, head, site, threshold, KEYS)
            slope = tl.where(kept, slope * keep_scale, 0.0)
            used = tl.where(kept, weight * keep_scale, 0.0)
        _store_rows(dv, used[:, None] * upstream[None, :], row, valid, head, heads, D, WIDTH)
        slope = weight * (slope - mean) * scale
        _store_rows(dk, slope[:, None] * query[None, :], row, valid, head, heads, D, WIDTH)
        sums += tl.sum(slope[:, None] * key, axis=0)
    tl.store(dq + place, sums.to(dq.dtype.element_ty), mask=inside)


class _Inputs:
    """What the wrappers share: strides, sizes, and the arguments that every kernel ends with."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_len: int, p: float, rng: Tensor | None, site: int,
        scale: float,
    ) -> None:  # fmt: skip
        self.q, self.k, self.v = (_operand(x) for x in (q, k, v))
        self.strides = [s for x in (self.q, self.k, self.v) for s in x.stride()[:2]]
        self.offsets, self.rng, self.max_len = offsets.contiguous(), rng, max_len
        self.sequences, self.heads = offsets.shape[0] - 1, q.shape[1]
        self.drawn = (scale, threshold(p), 1.0 / (1.0 - p), site)
        width = max(16, triton.next_power_of_2(q.shape[2]))
        self.shape: dict[str, Any] = {"DROPOUT": p > 0.0, "D": q.shape[2], "WIDTH": width}
        self.config = CONFIGS[self.q.element_size(), max(32, width)]
        self.precision = {"PRECISION": _precision(self.q.dtype)}

    def tile(self) -> dict[str, Any]:
        """The launch of a kernel that holds whole sequences."""
        length = max(16, triton.next_power_of_2(self.max_len))
        wide = self.shape["WIDTH"] // 32 if self.q.element_size() == 4 else 1
        warps = min(8, max(1, length // 16) * max(1, wide))
        return {**self.shape, **self.precision, "LENGTH": length, "num_warps": warps, "num_stages": 1}

    def blocks(self, blocks: Blocks) -> dict[str, Any]:
        launch = {"QUERIES": blocks.queries, "KEYS": blocks.keys}
        return {**self.shape, **self.precision, **launch, "num_warps": blocks.warps, "num_stages": blocks.stages}

    def last(self) -> dict[str, Any]:
        return {**self.shape, "KEYS": min(LAST_KEYS, max(16, triton.next_power_of_2(self.max_len)))}


def _operand(x: Tensor) -> Tensor:
    """With adjacent columns, where it lies if possible; no bfloat16 for the interpreter, which multiplies its bits."""
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        x = x.float()
    return x if x.stride(2) == 1 else x.contiguous()


def _precision(dtype: torch.dtype) -> str:
    """How float32 operands are multiplied; a half type has one way only."""
    return "tf32" if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else FLOAT32


def causal_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    x = _Inputs(q, k, v, offsets, *settings)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    if x.max_len <= x.config.one_tile_forward:
        _forward_tile[x.sequences, x.heads](
            x.q, x.k, x.v, out, lse, x.offsets, x.rng, *x.strides, *x.drawn, **x.tile()
        )  # fmt: skip
    else:
        count = triton.cdiv(x.max_len, x.config.forward.queries)
        _forward_blocks[x.sequences * count, x.heads](
            x.q, x.k, x.v, out, lse, x.offsets, x.rng, *x.strides, count, *x.drawn, **x.blocks(x.config.forward)
        )
    return out, lse


def causal_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    x = _Inputs(q, k, v, offsets, *settings)
    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    if dq.numel() == 0:
        return dq, dk, dv
    grad, out, lse = _operand(grad).contiguous(), out.contiguous(), lse.contiguous()
    if x.max_len <= x.config.one_tile_backward:
        _backward_tile[x.sequences, x.heads](
            grad, x.q, x.k, x.v, lse, dq, dk, dv, x.offsets, x.rng, *x.strides, *x.drawn, **x.tile()
        )
        return dq, dk, dv
    means = torch.empty_like(lse)
    blocks = x.config.backward_queries
    count = triton.cdiv(x.max_len, blocks.queries)
    _backward_queries[x.sequences * count, x.heads](
        grad, x.q, x.k, x.v, out, lse, means, dq, x.offsets, x.rng, *x.strides, count, *x.drawn, **x.blocks(blocks)
    )
    blocks = x.config.backward_keys
    count = triton.cdiv(x.max_len, blocks.keys)
    _backward_keys[x.sequences * count, x.heads](
        grad, x.q, x.k, x.v, lse, means, dk, dv, x.offsets, x.rng, *x.strides, count, *x.drawn, **x.blocks(blocks)
    )
    return dq, dk, dv


def last_query_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    x = _Inputs(q, k, v, offsets, *settings)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    _last_forward[x.sequences, x.heads](
        x.q, x.k, x.v, out, lse, x.offsets, x.rng, *x.strides, *x.drawn, **x.last()
    )  # fmt: skip
    return out, lse


def last_query_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    x = _Inputs(q, k, v, offsets, *settings)
    dq, dk, dv = (torch.empty(y.shape, dtype=q.dtype, device=q.device) for y in (q, k, v))
    if dq.numel() == 0:
        return dq, dk, dv
    _last_backward[x.sequences, x.heads](
        _operand(grad).contiguous(), x.q, x.k, x.v, lse.contiguous(), dq, dk, dv, x.offsets, x.rng, *x.strides,
        *x.drawn, **x.last(),
    )  # fmt: skip
    return dq, dk, dv
