"""Causal self-attention over jagged sequences, and its last row alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register
from .philox import check_dropout


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    max_len: int,
    dropout_p: float = 0.0,
    rng: Tensor | None = None,
    site: int = 0,
    scale: float | None = None,
) -> Tensor:
    """dropout(softmax(scale · Q Kᵀ)) V, where a row sees itself and the rows before it in its own sequence.

    Args:
        q, k, v: [T, H, D], all of one floating type; autocast on a GPU casts them to its own. Rows need not be adjacent
            in memory: slices of one joint projection are read where they lie. float16 and bfloat16 are computed in
            float32. On a GPU plain PyTorch serves D over 128, with one warning.
        offsets: int32 [B + 1]; sequence b is rows offsets[b] ... offsets[b + 1] - 1. Starts at 0, never decreases, ends
            at T (checked on the CPU; elsewhere with FASTSEQ_CHECK=1, as a check waits for the device). Sequences may be
            empty.
        max_len: at least the length of the longest sequence, known without looking at ``offsets``.
        dropout_p: probability that a softmax weight is dropped, 0 <= dropout_p < 1.
        rng: int64 [2], (seed, step); needed where dropout_p > 0.
        site: which dropout of the model this is, 0 ... 0x7fff. Counter layout: fastseq/ops/philox.py.
        scale: factor of the scores, 1 / sqrt(D) if None.

    Returns:
        [T, H, D] in the type of ``q``. No [B, H, L, L] tensor is made, forward or backward.

    Raises:
        ValueError: if a shape, type, probability or site is not as above.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, eq. 1; backward from the saved log-sum-exp as in
    Dao et al., "FlashAttention", NeurIPS 2022.
    """
    scale = _checked(q, k, v, offsets, dropout_p, rng, site, scale)
    if q.shape[0] != k.shape[0]:
        raise ValueError(f"q has {q.shape[0]} rows and k has {k.shape[0]}, expected as many")
    out: Tensor = _causal_attention(q, k, v, offsets, max_len, dropout_p, rng, site, scale)[0]
    return out


def last_query_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    max_len: int,
    dropout_p: float = 0.0,
    rng: Tensor | None = None,
    site: int = 0,
    scale: float | None = None,
) -> Tensor:
    """The row of :func:`causal_attention` at the end of each sequence, its dropout mask included.

    Args:
        q: [B, H, D], the queries of each sequence's last row.
        k, v, offsets, max_len, dropout_p, rng, site, scale: as in :func:`causal_attention`.

    Returns:
        [B, H, D] in the type of ``q``; zeros, with zero gradients, for an empty sequence.

    Raises:
        ValueError: if a shape, type, probability or site is not as above.

    Source: as :func:`causal_attention`.
    """
    scale = _checked(q, k, v, offsets, dropout_p, rng, site, scale)
    if q.shape[0] != offsets.shape[0] - 1:
        raise ValueError(f"q has {q.shape[0]} rows, expected one for each of {offsets.shape[0] - 1} sequences")
    out: Tensor = _last_query_attention(q, k, v, offsets, max_len, dropout_p, rng, site, scale)[0]
    return out


def _checked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    dropout_p: float,
    rng: Tensor | None,
    site: int,
    scale: float | None,
) -> float:
    """Raises ValueError for what can be seen without reading data; returns the scale."""
    check_dropout(dropout_p, rng, site)
    _checks.one_type(q=q, k=k, v=v)
    if q.dim() != 3 or k.dim() != 3:
        raise ValueError(f"q is {list(q.shape)} and k is {list(k.shape)}, expected [rows, heads, head dim]")
    if k.shape != v.shape or q.shape[1:] != k.shape[1:]:
        shapes = f"q is {list(q.shape)}, k is {list(k.shape)}, v is {list(v.shape)}"
        raise ValueError(f"{shapes}: k and v must agree, and all three in heads and head dim")
    heads, width = q.shape[1], q.shape[2]
    if width < 1:
        raise ValueError("head dim is 0, expected at least 1")
    if not 1 <= heads <= 0xFFFF:
        raise ValueError(f"q has {heads} heads, expected 1 to {0xFFFF}")
    if offsets.dtype != torch.int32 or offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ValueError(f"offsets is {offsets.dtype} {list(offsets.shape)}, expected torch.int32 [B + 1]")
    if scale is not None:
        _checks.number("scale", scale)
    return 1.0 / math.sqrt(width) if scale is None else float(scale)


def _check_data(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_len: int, *_: Any) -> None:
    _checks.offsets_of_rows(offsets, k.shape[0], max_len)


def _fake(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, q.new_empty(q.shape[:2], dtype=kind)


# lse: log of the sum of exp(scaled scores) of each query and head, in the type of the computation; 0 where there is
# no key.
_causal_attention = register(
    "causal_attention",
    fake=_fake,
    differentiable=(0, 1, 2),
    with_output=True,
    check=_check_data,
    autocast=(0, 1, 2),
)
_last_query_attention = register(
    "last_query_attention",
    fake=_fake,
    differentiable=(0, 1, 2),
    with_output=True,
    check=_check_data,
    autocast=(0, 1, 2),
)
