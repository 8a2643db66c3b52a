"""Causal attention over jagged sequences: scores and weights live in registers only, forward and backward.

Short sequences, up to 128 events by type and width, fit one tile, so one program has all scores of a sequence and
head: softmax in one step, and a backward that makes the scores once for all three gradients. Longer ones go block by
block: the forward rescales its sums when a larger score comes (online softmax), and the backward is two kernels, one
over query blocks for dq, one over key blocks for dk and dv, each writing what only it owns, so there are no atomics.
The last query alone is a pass over keys and values without matrix instructions: it is bound by memory.

Offsets stay on the device: the grid follows max_len, and programs past the end of their sequence return at once.
float32 operands are multiplied in float32 unless PyTorch is set to use TF32; others on the matrix units with float32
sums. Softmax and its statistics are float32 always.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_common import MAX_HEAD_DIM, Inputs, head_operand, head_rows, keep_mask, narrow_heads, store_rows
from .last_query_attention import last_query_attention, last_query_attention_backward
from .sizes import cdiv

__all__ = [
    "causal_attention",
    "causal_attention_backward",
    "last_query_attention",
    "last_query_attention_backward",
]


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
    query = head_rows(q, row, valid, head, q_row, q_head, D, WIDTH)
    key = head_rows(k, row, valid, head, k_row, k_head, D, WIDTH)
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    score = tl.where(index[None, :] <= index[:, None], score, float("-inf"))
    top = tl.max(score, axis=1)
    weight = tl.exp(score - top[:, None])
    total = tl.sum(weight, axis=1)
    tl.store(lse + row * heads + head, top + tl.log(total), mask=valid)
    if DROPOUT:
        weight = tl.where(keep_mask(rng, row, 0, head, site, threshold, LENGTH, LENGTH), weight, 0.0)
    value = head_rows(v, row, valid, head, v_row, v_head, D, WIDTH)
    sums = tl.dot(weight.to(value.dtype), value, input_precision=PRECISION)
    store_rows(out, sums * (keep_scale / total)[:, None], row, valid, head, heads, D, WIDTH)


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
    query = head_rows(q, row, valid, head, q_row, q_head, D, WIDTH)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    for at in range(0, tl.minimum(first + QUERIES, length), KEYS):
        key_index = at + tl.arange(0, KEYS)
        key_row = start.to(tl.int64) + key_index
        key = head_rows(k, key_row, key_index < length, head, k_row, k_head, D, WIDTH)
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        score = tl.where(key_index[None, :] <= index[:, None], score, float("-inf"))
        larger = tl.maximum(top, tl.max(score, axis=1))  # finite: key 0 is seen by all, in the first block
        weight = tl.exp(score - larger[:, None])
        shrink = tl.exp(top - larger)
        total = total * shrink + tl.sum(weight, axis=1)
        if DROPOUT:
            weight = tl.where(keep_mask(rng, row, at, head, site, threshold, QUERIES, KEYS), weight, 0.0)
        value = head_rows(v, key_row, key_index < length, head, v_row, v_head, D, WIDTH)
        sums = sums * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision=PRECISION)
        top = larger
    tl.store(lse + row * heads + head, top + tl.log(total), mask=valid)
    store_rows(out, sums * (keep_scale / total)[:, None], row, valid, head, heads, D, WIDTH)


@triton.jit
def _weights(query, key, lse, index, key_index, valid, scale, PRECISION: tl.constexpr):
    """Softmax weights [QUERIES, KEYS] from the saved log-sum-exp; 0 where a key is not seen."""
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale - lse[:, None]
    seen = (key_index[None, :] <= index[:, None]) & valid[:, None]
    return tl.exp(tl.where(seen, score, float("-inf")))


@triton.jit(do_not_specialize=["site"])
def _backward_tile(
    grad, q, k, v, lse, dq, dk, dv, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, scale,
    threshold, keep_scale, site,
    SLOTS: tl.constexpr, DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, LENGTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """All three gradients of one sequence and head: of dq, dk and dv each, or in the SLOTS = 3 of one tensor."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    start = tl.load(offsets + tl.program_id(0))
    length = tl.load(offsets + tl.program_id(0) + 1) - start
    if length <= 0:
        return
    index = tl.arange(0, LENGTH)
    valid = index < length
    row = start.to(tl.int64) + index
    query = head_rows(q, row, valid, head, q_row, q_head, D, WIDTH)
    key = head_rows(k, row, valid, head, k_row, k_head, D, WIDTH)
    weight = _weights(
        query, key, tl.load(lse + row * heads + head, mask=valid, other=0.0), index, index, valid, scale, PRECISION
    )
    value = head_rows(v, row, valid, head, v_row, v_head, D, WIDTH)
    upstream = head_rows(grad, row, valid, head, heads * D, D, D, WIDTH)
    slope = tl.dot(upstream, tl.trans(value), input_precision=PRECISION)  # of the weights, dropped or not
    used = weight
    if DROPOUT:
        kept = keep_mask(rng, row, 0, head, site, threshold, LENGTH, LENGTH)
        slope = tl.where(kept, slope * keep_scale, 0.0)
        used = tl.where(kept, weight * keep_scale, 0.0)
    sums = tl.dot(tl.trans(used.to(upstream.dtype)), upstream, input_precision=PRECISION)
    store_rows(dv, sums, row, valid, (SLOTS - 1) * heads + head, heads * SLOTS, D, WIDTH)
    # The weights sum to 1 but for the rounding of lse, which would not cancel in slope - mean: divided out.
    mean = tl.sum(weight * slope, axis=1) / tl.where(valid, tl.sum(weight, axis=1), 1.0)
    slope = (weight * (slope - mean[:, None]) * scale).to(query.dtype)
    store_rows(dq, tl.dot(slope, key, input_precision=PRECISION), row, valid, head, heads * SLOTS, D, WIDTH)
    sums = tl.dot(tl.trans(slope), query, input_precision=PRECISION)
    store_rows(dk, sums, row, valid, SLOTS // 2 * heads + head, heads * SLOTS, D, WIDTH)


@triton.jit(do_not_specialize=["site", "blocks"])
def _backward_queries(
    grad, q, k, v, out, lse, means, dq, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, blocks,
    scale, threshold, keep_scale, site,
    SLOTS: tl.constexpr, DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
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
    query = head_rows(q, row, valid, head, q_row, q_head, D, WIDTH)
    upstream = head_rows(grad, row, valid, head, heads * D, D, D, WIDTH)
    result = head_rows(out, row, valid, head, heads * D, D, D, WIDTH)
    mean = tl.sum(upstream.to(tl.float32) * result.to(tl.float32), axis=1)
    tl.store(means + row * heads + head, mean, mask=valid)
    norm = tl.load(lse + row * heads + head, mask=valid, other=0.0)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    for at in range(0, tl.minimum(first + QUERIES, length), KEYS):
        key_index = at + tl.arange(0, KEYS)
        key_row = start.to(tl.int64) + key_index
        key = head_rows(k, key_row, key_index < length, head, k_row, k_head, D, WIDTH)
        value = head_rows(v, key_row, key_index < length, head, v_row, v_head, D, WIDTH)
        weight = _weights(query, key, norm, index, key_index, valid, scale, PRECISION)
        slope = tl.dot(upstream, tl.trans(value), input_precision=PRECISION)
        if DROPOUT:
            kept = keep_mask(rng, row, at, head, site, threshold, QUERIES, KEYS)
            slope = tl.where(kept, slope * keep_scale, 0.0)
        slope = (weight * (slope - mean[:, None]) * scale).to(key.dtype)
        sums += tl.dot(slope, key, input_precision=PRECISION)
    store_rows(dq, sums, row, valid, head, heads * SLOTS, D, WIDTH)


@triton.jit(do_not_specialize=["site", "blocks"])
def _backward_keys(
    grad, q, k, v, lse, means, dk, dv, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, blocks,
    scale, threshold, keep_scale, site,
    SLOTS: tl.constexpr, DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
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
    key = head_rows(k, key_row, key_valid, head, k_row, k_head, D, WIDTH)
    value = head_rows(v, key_row, key_valid, head, v_row, v_head, D, WIDTH)
    key_sums = tl.zeros((KEYS, WIDTH), tl.float32)
    value_sums = tl.zeros((KEYS, WIDTH), tl.float32)
    for at in range(first // QUERIES * QUERIES, length, QUERIES):
        index = at + tl.arange(0, QUERIES)
        valid = index < length
        row = start.to(tl.int64) + index
        query = head_rows(q, row, valid, head, q_row, q_head, D, WIDTH)
        upstream = head_rows(grad, row, valid, head, heads * D, D, D, WIDTH)
        norm = tl.load(lse + row * heads + head, mask=valid, other=0.0)
        mean = tl.load(means + row * heads + head, mask=valid, other=0.0)
        weight = _weights(query, key, norm, index, key_index, valid, scale, PRECISION)
        slope = tl.dot(upstream, tl.trans(value), input_precision=PRECISION)
        used = weight
        if DROPOUT:
            kept = keep_mask(rng, row, first, head, site, threshold, QUERIES, KEYS)
            slope = tl.where(kept, slope * keep_scale, 0.0)
            used = tl.where(kept, weight * keep_scale, 0.0)
        value_sums += tl.dot(tl.trans(used.to(upstream.dtype)), upstream, input_precision=PRECISION)
        slope = (weight * (slope - mean[:, None]) * scale).to(query.dtype)
        key_sums += tl.dot(tl.trans(slope), query, input_precision=PRECISION)
    store_rows(dk, key_sums, key_row, key_valid, SLOTS // 2 * heads + head, heads * SLOTS, D, WIDTH)
    store_rows(dv, value_sums, key_row, key_valid, (SLOTS - 1) * heads + head, heads * SLOTS, D, WIDTH)


@narrow_heads
def causal_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    x = Inputs(q, k, v, offsets, *settings)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    tensors = (x.q, x.k, x.v, out, lse, x.offsets, x.rng, *x.strides)
    if x.max_len <= x.config.one_tile_forward:
        _forward_tile[x.sequences, x.heads](*tensors, *x.drawn, **x.one_tile())
        return out, lse
    tile = x.config.forward
    count = cdiv(x.longest, tile.queries)
    _forward_blocks[x.sequences * count, x.heads](*tensors, count, *x.drawn, **x.by_blocks(tile))
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
    grad, out, lse = head_operand(grad).contiguous(), out.contiguous(), lse.contiguous()
    inputs, ends = (grad, x.q, x.k, x.v), (x.offsets, x.rng, *x.strides)
    if x.max_len <= x.config.one_tile_backward:
        _backward_tile[x.sequences, x.heads](
            *inputs, lse, dq, dk, dv, *ends, *x.drawn, SLOTS=slots, **x.one_tile()
        )  # fmt: skip
        return
    means = torch.empty_like(lse)
    tile = x.config.backward_queries
    count = cdiv(x.longest, tile.queries)
    _backward_queries[x.sequences * count, x.heads](
        *inputs, out, lse, means, dq, *ends, count, *x.drawn, SLOTS=slots, **x.by_blocks(tile)
    )
    tile = x.config.backward_keys
    count = cdiv(x.longest, tile.keys)
    _backward_keys[x.sequences * count, x.heads](
        *inputs, lse, means, dk, dv, *ends, count, *x.drawn, SLOTS=slots, **x.by_blocks(tile)
    )


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
