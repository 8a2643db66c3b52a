"""The last query of each sequence alone: a pass over its keys and values, bound by memory, without matrix units."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_common import (
    LAST_KEYS,
    Inputs,
    head_operand,
    head_rows,
    keep_mask,
    key_order,
    narrow_heads,
    store_rows,
)


@triton.jit
def _query(q, sequence, head, q_row, q_head, D: tl.constexpr, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    offset = sequence * q_row + head.to(tl.int64) * q_head + column
    return tl.load(q + offset, mask=column < D, other=0.0).to(tl.float32)


@triton.jit
def _last_score(query, k, at, valid, head, k_row, k_head, scale, D: tl.constexpr, WIDTH: tl.constexpr,
                KEYS: tl.constexpr):  # fmt: skip
    """Keys [KEYS, WIDTH] and the query's scores with them, -inf where there is none."""
    key = head_rows(k, at, key_order(KEYS), valid, head, k_row, k_head, D, WIDTH).to(tl.float32)
    return key, tl.where(valid, tl.sum(key * query[None, :], axis=1) * scale, float("-inf"))


@triton.jit
def _last_kept(rng, stop, at, head, site, threshold, KEYS: tl.constexpr):
    kept = keep_mask(rng, stop - 1 + tl.arange(0, 1), at, head, site, threshold, 1, KEYS)
    return tl.reshape(kept, (KEYS,))


@triton.jit(do_not_specialize=["site"])
def _last_forward(
    q, k, v, out, lse, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, scale, threshold, keep_scale, site,
    DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The last query of one sequence and head."""
    sequence, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    column, order = tl.arange(0, WIDTH), key_order(KEYS)
    start, stop = tl.load(offsets + sequence), tl.load(offsets + sequence + 1)
    low = tl.where(start < stop, start // 8 * 8, stop)  # where a call of Philox begins
    query = _query(q, sequence, head, q_row, q_head, D, WIDTH)
    top = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    sums = tl.zeros((WIDTH,), tl.float32)
    for at in range(low, stop, KEYS):
        key_row = at + order
        valid = (start <= key_row) & (key_row < stop)
        _, score = _last_score(query, k, at, valid, head, k_row, k_head, scale, D, WIDTH, KEYS)
        larger = tl.maximum(top, tl.max(score, axis=0))
        weight = tl.exp(score - larger)
        shrink = tl.exp(top - larger)
        total = total * shrink + tl.sum(weight, axis=0)
        if DROPOUT:
            weight = tl.where(_last_kept(rng, stop, at, head, site, threshold, KEYS), weight, 0.0)
        value = head_rows(v, at, order, valid, head, v_row, v_head, D, WIDTH).to(tl.float32)
        sums = sums * shrink + tl.sum(weight[:, None] * value, axis=0)
        top = larger
    some = start < stop  # zeros for an empty sequence
    total = tl.where(some, total, 1.0)
    norm = tl.where(some, top, 0.0) + tl.log(total)
    tl.store(lse + sequence * heads + head + tl.arange(0, 1), norm)
    offset = (sequence * heads + head) * D + column
    tl.store(out + offset, (sums * (keep_scale / total)).to(out.dtype.element_ty), mask=column < D)


@triton.jit(do_not_specialize=["site"])
def _last_backward(
    grad, q, k, v, lse, dq, dk, dv, offsets, rng, q_row, q_head, k_row, k_head, v_row, v_head, scale, threshold,
    keep_scale, site,
    DROPOUT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """All three gradients of one sequence and head: its keys and values have no other query."""
    sequence, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    column, order = tl.arange(0, WIDTH), key_order(KEYS)
    inside = column < D
    start, stop = tl.load(offsets + sequence), tl.load(offsets + sequence + 1)
    low = tl.where(start < stop, start // 8 * 8, stop)  # where a call of Philox begins
    offset = (sequence * heads + head) * D + column
    query = _query(q, sequence, head, q_row, q_head, D, WIDTH)
    upstream = tl.load(grad + offset, mask=inside, other=0.0).to(tl.float32)
    norm = tl.load(lse + sequence * heads + head)
    # The mean slope, which grad · out would give too, but from a result that has been rounded; over weights that sum
    # to 1 but for the rounding of lse, which would not cancel in slope - mean.
    mean = tl.zeros((1,), tl.float32)
    total = tl.zeros((1,), tl.float32)
    for at in range(low, stop, KEYS):
        key_row = at + order
        valid = (start <= key_row) & (key_row < stop)
        _, score = _last_score(query, k, at, valid, head, k_row, k_head, scale, D, WIDTH, KEYS)
        weight = tl.exp(score - norm)
        value = head_rows(v, at, order, valid, head, v_row, v_head, D, WIDTH).to(tl.float32)
        slope = tl.sum(value * upstream[None, :], axis=1)
        if DROPOUT:
            slope = tl.where(_last_kept(rng, stop, at, head, site, threshold, KEYS), slope * keep_scale, 0.0)
        mean += tl.sum(weight * slope, axis=0)
        total += tl.sum(weight, axis=0)
    mean /= tl.where(start < stop, total, 1.0)
    sums = tl.zeros((WIDTH,), tl.float32)
    for at in range(low, stop, KEYS):
        key_row = at + order
        valid = (start <= key_row) & (key_row < stop)
        key, score = _last_score(query, k, at, valid, head, k_row, k_head, scale, D, WIDTH, KEYS)
        weight = tl.exp(score - norm)
        value = head_rows(v, at, order, valid, head, v_row, v_head, D, WIDTH).to(tl.float32)
        slope = tl.sum(value * upstream[None, :], axis=1)
        used = weight
        if DROPOUT:
            kept = _last_kept(rng, stop, at, head, site, threshold, KEYS)
            slope = tl.where(kept, slope * keep_scale, 0.0)
            used = tl.where(kept, weight * keep_scale, 0.0)
        store_rows(dv, used[:, None] * upstream[None, :], at, order, valid, head, heads, D, WIDTH)
        slope = weight * (slope - mean) * scale
        store_rows(dk, slope[:, None] * query[None, :], at, order, valid, head, heads, D, WIDTH)
        sums += tl.sum(slope[:, None] * key, axis=0)
    tl.store(dq + offset, sums.to(dq.dtype.element_ty), mask=inside)


@narrow_heads
def last_query_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    x = Inputs(q, k, v, offsets, *settings)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    _last_forward[x.sequences, x.heads](
        x.q, x.k, x.v, out, lse, x.offsets, x.rng, *x.strides, *x.drawn, **x.shape, KEYS=LAST_KEYS
    )  # fmt: skip
    return out, lse


@narrow_heads
def last_query_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *settings_and_saved: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *settings, _, lse = settings_and_saved
    x = Inputs(q, k, v, *settings)
    dq, dk, dv = (torch.empty(y.shape, dtype=q.dtype, device=q.device) for y in (q, k, v))
    if dq.numel() == 0:
        return dq, dk, dv
    _last_backward[x.sequences, x.heads](
        head_operand(grad).contiguous(), x.q, x.k, x.v, lse.contiguous(), dq, dk, dv, x.offsets, x.rng, *x.strides,
        *x.drawn, **x.shape, KEYS=LAST_KEYS,
    )  # fmt: skip
    return dq, dk, dv
