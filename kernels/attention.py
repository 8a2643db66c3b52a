"""Causal attention over jagged sequences: scores and weights live in registers only, forward and backward.

A program takes the next rows of the jagged batch, whichever sequences they belong to, and goes over the keys from the
start of its first row's sequence to its last row. A row sees the keys from its sequence's start up to itself: a causal
mask, block-diagonal where a tile has rows of several sequences. So the grid depends on the number of rows alone, and
short sequences share a tile. Programs find their first row's sequence by a binary search in the offsets.

The forward rescales its sums when a larger score comes (online softmax). The backward makes scores and masks once where
it fits: a program has some keys, sums dk and dv over the queries that see them, and writes what its keys add to dq; a
small kernel adds these parts up. Longer sequences would have too many parts, and some tiles too many registers: then it
is two kernels, over queries for dq, over keys for dk and dv. Each writes what only it owns: there are no atomics. The
last query alone is a pass over keys and values without matrix instructions: it is bound by memory.

float32 operands are multiplied in float32 unless PyTorch is set to use TF32; others on the matrix units with float32
sums. Softmax and its statistics are float32 always. Exponentials are powers of two. A NaN or infinity among the values
reaches the rows that share a tile with it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_common import (
    MAX_HEAD_DIM,
    MOST_PARTS,
    SUM,
    Inputs,
    head_operand,
    head_rows,
    keep_mask,
    key_order,
    narrow_heads,
    sequence_bounds,
    store_rows,
)
from .last_query_attention import last_query_attention, last_query_attention_backward

__all__ = [
    "causal_attention",
    "causal_attention_backward",
    "last_query_attention",
    "last_query_attention_backward",
]

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _scores(query, key, scale, row, key_row, reach, some, PRECISION: tl.constexpr):
    """Scores [QUERIES, KEYS] in units of log 2, where ``some`` are hidden -inf for those: of keys after the row or more
    than ``reach`` before it, which one comparison of unsigned numbers tells."""
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scale * LOG2_E)
    if some:
        distance = (row[:, None] - key_row[None, :]).to(tl.uint32)
        score = tl.where(distance <= reach.to(tl.uint32), score, float("-inf"))
    return score


@triton.jit(do_not_specialize=["rows", "sequences", "steps", "site"])
def _forward(
    q, k, v, out, lse, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, rows, sequences, steps, scale,
    threshold, keep_scale, site,
    DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """QUERIES rows of one head."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    first = tl.program_id(0) * QUERIES
    index, order = tl.arange(0, QUERIES), key_order(KEYS)
    row = first + index
    valid = row < rows
    last = tl.minimum(first + QUERIES, rows)
    start, low, high = sequence_bounds(row, first, last, offsets, sequences, steps, False)
    query = head_rows(q, first, index, valid, head, q_row, q_head, D, WIDTH)
    # Finite, so that a row that has seen no key yet has weights of 0 and not NaN.
    top = tl.full((QUERIES,), -3.0e38, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    for at in range(low // 8 * 8, last, KEYS):
        key_row = at + order
        key = head_rows(k, at, order, key_row < rows, head, k_row, k_head, D, WIDTH)
        some = (at < high) | (first < at + KEYS - 1)
        score = _scores(query, key, scale, row, key_row, (row - start)[:, None], some, PRECISION)
        larger = tl.maximum(top, tl.max(score, axis=1))
        weight = tl.exp2(score - larger[:, None])
        shrink = tl.exp2(top - larger)
        total = total * shrink + tl.sum(weight, axis=1)
        if DROPOUT:
            # Not the constant 0, which LLVM moves behind the rounding: it then takes apart pairs of halves to choose.
            nothing = keep_scale - keep_scale
            weight = tl.where(keep_mask(rng, row, at, head, site, threshold, QUERIES, KEYS), weight, nothing)
        value = head_rows(v, at, order, key_row < rows, head, v_row, v_head, D, WIDTH)
        sums = sums * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision=PRECISION)
        top = larger
    tl.store(lse + row.to(tl.int64) * heads + head, (top + tl.log2(total)) / LOG2_E, mask=valid)
    store_rows(out, sums * (keep_scale / total)[:, None], first, index, valid, head, heads, D, WIDTH)


@triton.jit(do_not_specialize=["rows", "sequences", "steps", "site"])
def _backward_queries(
    grad, q, k, v, out, lse, means, dq, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, rows, sequences,
    steps, scale, threshold, keep_scale, site,
    SLOTS: tl.constexpr, DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of QUERIES rows of one head, and what the kernel for dk and dv needs of them: the mean slope of each softmax.

    SLOTS is 1 where dq, dk and dv are tensors, 3 where one holds them all."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    first = tl.program_id(0) * QUERIES
    index, order = tl.arange(0, QUERIES), key_order(KEYS)
    row = first + index
    valid = row < rows
    last = tl.minimum(first + QUERIES, rows)
    start, low, high = sequence_bounds(row, first, last, offsets, sequences, steps, False)
    query = head_rows(q, first, index, valid, head, q_row, q_head, D, WIDTH)
    upstream = head_rows(grad, first, index, valid, head, heads * D, D, D, WIDTH)
    result = head_rows(out, first, index, valid, head, heads * D, D, D, WIDTH)
    mean = tl.sum(upstream.to(tl.float32) * result.to(tl.float32), axis=1)
    statistic = row.to(tl.int64) * heads + head
    tl.store(means + statistic, mean, mask=valid)
    norm = tl.load(lse + statistic, mask=valid, other=0.0) * LOG2_E
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    for at in range(low // 8 * 8, last, KEYS):
        key_row = at + order
        key = head_rows(k, at, order, key_row < rows, head, k_row, k_head, D, WIDTH)
        value = head_rows(v, at, order, key_row < rows, head, v_row, v_head, D, WIDTH)
        some = (at < high) | (first < at + KEYS - 1)
        score = _scores(query, key, scale, row, key_row, (row - start)[:, None], some, PRECISION)
        weight = tl.exp2(score - norm[:, None])
        slope = tl.dot(upstream, tl.trans(value), input_precision=PRECISION)
        if DROPOUT:
            kept = keep_mask(rng, row, at, head, site, threshold, QUERIES, KEYS)
            slope = tl.where(kept, slope * keep_scale, 0.0)
        slope = (weight * (slope - mean[:, None])).to(key.dtype)
        sums += tl.dot(slope, key, input_precision=PRECISION)
    store_rows(dq, sums * scale, first, index, valid, head, heads * SLOTS, D, WIDTH)


@triton.jit(do_not_specialize=["rows", "sequences", "steps", "site"])
def _backward_keys(
    grad, q, k, v, out, lse, means, dk, dv, parts, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, rows,
    sequences, steps, scale, threshold, keep_scale, site,
    PARTS: tl.constexpr, SLOTS: tl.constexpr, DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of KEYS rows of one head; where PARTS is not 0, also what those keys add to dq, into ``parts`` [PARTS,
    rows, heads, D]. Of PARTS tiles in a row each is another part, and so many hold the keys of any row."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    first = tl.program_id(0) * KEYS
    order, index = key_order(KEYS), tl.arange(0, QUERIES)
    key_row = first + order
    key_valid = key_row < rows
    last = tl.minimum(first + KEYS, rows)
    stop, low, high = sequence_bounds(key_row, first, last, offsets, sequences, steps, True)
    # A key past the last row is seen by no row. Its weights would be powers of -lse, and infinity times its zeros NaN.
    reach = tl.maximum(stop - 1 - key_row, 0)
    key = head_rows(k, first, order, key_valid, head, k_row, k_head, D, WIDTH)
    value = head_rows(v, first, order, key_valid, head, v_row, v_head, D, WIDTH)
    key_sums = tl.zeros((KEYS, WIDTH), tl.float32)
    value_sums = tl.zeros((KEYS, WIDTH), tl.float32)
    for at in range(first, high, QUERIES):
        row = at + index
        valid = row < rows
        query = head_rows(q, at, index, valid, head, q_row, q_head, D, WIDTH)
        upstream = head_rows(grad, at, index, valid, head, heads * D, D, D, WIDTH)
        statistic = row.to(tl.int64) * heads + head
        norm = tl.load(lse + statistic, mask=valid, other=0.0) * LOG2_E
        if PARTS > 0:
            result = head_rows(out, at, index, valid, head, heads * D, D, D, WIDTH)
            # The diagonal of a product: on a matrix unit cheaper than the sums alone, which would widen every element.
            mean = tl.dot(upstream, tl.trans(result), input_precision=PRECISION)
            mean = tl.sum(tl.where(index[:, None] == index[None, :], mean, 0.0), axis=1)
        else:
            mean = tl.load(means + statistic, mask=valid, other=0.0)
        some = (at < first + KEYS - 1) | (low < at + QUERIES)
        score = _scores(query, key, scale, row, key_row, reach[None, :], some, PRECISION)
        weight = tl.exp2(score - norm[:, None])
        slope = tl.dot(upstream, tl.trans(value), input_precision=PRECISION)
        used = weight
        if DROPOUT:
            kept = keep_mask(rng, row, first, head, site, threshold, QUERIES, KEYS)
            slope = tl.where(kept, slope * keep_scale, 0.0)
            used = tl.where(kept, weight, keep_scale - keep_scale)  # 0, as in the forward
        value_sums += tl.dot(tl.trans(used.to(upstream.dtype)), upstream, input_precision=PRECISION)
        slope = (weight * (slope - mean[:, None])).to(query.dtype)
        key_sums += tl.dot(tl.trans(slope), query, input_precision=PRECISION)
        if PARTS > 0:
            part = parts + tl.cast(tl.program_id(0) % PARTS, tl.int64) * rows * heads * D
            store_rows(
                part, tl.dot(slope, key, input_precision=PRECISION), at, index, row < high, head, heads, D, WIDTH
            )
    store_rows(dk, key_sums * scale, first, order, key_valid, SLOTS // 2 * heads + head, heads * SLOTS, D, WIDTH)
    slot = (SLOTS - 1) * heads + head
    store_rows(dv, value_sums * keep_scale, first, order, key_valid, slot, heads * SLOTS, D, WIDTH)


@triton.jit(do_not_specialize=["rows", "sequences", "steps", "site"])
def _add_parts(
    parts, dq, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, rows, sequences, steps, scale, threshold,
    keep_scale, site,
    PARTS: tl.constexpr, SLOTS: tl.constexpr, DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of QUERIES rows of one head: the sum of what the tiles of KEYS keys have added."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    first = tl.program_id(0) * QUERIES
    index = tl.arange(0, QUERIES)
    row, last = first + index, tl.minimum(first + QUERIES, rows)
    start, low, _ = sequence_bounds(row, first, last, offsets, sequences, steps, False)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    for tile in range(low // KEYS, (last - 1) // KEYS + 1):
        some = (row < rows) & (start // KEYS <= tile) & (tile <= row // KEYS)
        part = parts + tl.cast(tile % PARTS, tl.int64) * rows * heads * D
        sums += head_rows(part, first, index, some, head, heads * D, D, D, WIDTH)
    store_rows(dq, sums * scale, first, index, row < rows, head, heads * SLOTS, D, WIDTH)


@narrow_heads
def causal_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    x = Inputs(q, k, v, offsets, *settings)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    if out.numel() > 0:
        blocks = x.config.forward
        x.launch(_forward, blocks, blocks.queries, x.q, x.k, x.v, out, lse)
    return out, lse


def _fill_gradients(
    grads: tuple[Tensor, ...], slots: int, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *settings_and_saved: Any
) -> None:
    """Writes the gradients of q, k and v: three tensors, or ``slots`` = 3 times the one that holds them all."""
    *settings, out, lse = settings_and_saved
    x = Inputs(q, k, v, *settings)
    dq, dk, dv = grads
    if dq.numel() == 0:
        return
    grad, out, lse = head_operand(grad).contiguous(), head_operand(out).contiguous(), lse.contiguous()
    inputs = (grad, x.q, x.k, x.v, out, lse)
    blocks = x.config.one_pass
    if blocks is not None and (count := x.parts(blocks.keys)) <= MOST_PARTS:
        parts = torch.empty(count, *q.shape, dtype=torch.float32, device=q.device)
        ways = {"SLOTS": slots, "PARTS": count}
        x.launch(_backward_keys, blocks, blocks.keys, *inputs, None, dk, dv, parts, **ways)
        x.launch(_add_parts, SUM._replace(keys=blocks.keys), SUM.queries, parts, dq, **ways)
        return
    means = torch.empty_like(lse)
    blocks = x.config.backward_queries
    x.launch(_backward_queries, blocks, blocks.queries, *inputs, means, dq, SLOTS=slots)
    blocks = x.config.backward_keys
    x.launch(_backward_keys, blocks, blocks.keys, *inputs, means, dk, dv, None, SLOTS=slots, PARTS=0)


@narrow_heads
def causal_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *settings_and_saved: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    _fill_gradients((dq, dk, dv), 1, grad, q, k, v, *settings_and_saved)
    return dq, dk, dv


def packed_gradient(grad: Tensor, packed: Tensor, *settings_and_saved: Any) -> Tensor:
    """causal_attention_backward for q, k and v in one tensor [T, 3, H, D], as the projection writes them."""
    if packed.shape[3] > MAX_HEAD_DIM:
        return torch.stack(causal_attention_backward(grad, *packed.unbind(1), *settings_and_saved), 1)
    result = torch.empty_like(packed)
    _fill_gradients((result,) * 3, 3, grad, *packed.unbind(1), *settings_and_saved)
    return result
