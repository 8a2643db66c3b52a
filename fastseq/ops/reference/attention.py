"""Plain PyTorch twin of fastseq/ops/attention.py: one sequence at a time, all of its scores in memory."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ._autograd import vjp
from .philox import apply_dropout


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_len: int, dropout_p: float, rng: Tensor | None, site: int,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    bounds = offsets.tolist()
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    outs = [q[:0]]  # so that an empty batch has a gradient too
    lses = [q.new_empty((0, q.shape[1]), dtype=kind)]
    for start, stop in pairwise(bounds):
        rows = torch.arange(start, stop, device=q.device)
        out, lse = _attend(q[start:stop], k[start:stop], v[start:stop], rows, start, dropout_p, rng, site, scale)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def last_query_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_len: int, dropout_p: float, rng: Tensor | None, site: int,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    bounds = offsets.tolist()
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    outs = [q[:0]]
    lses = [q.new_empty((0, q.shape[1]), dtype=kind)]
    for b, (start, stop) in enumerate(pairwise(bounds)):
        query = q[b : b + 1]
        if start == stop:
            out, lse = torch.zeros_like(query), query.new_zeros(query.shape[:2], dtype=kind)
        else:
            row = torch.tensor([stop - 1], device=q.device)
            out, lse = _attend(query, k[start:stop], v[start:stop], row, start, dropout_p, rng, site, scale)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, start: int, dropout_p: float, rng: Tensor | None, site: int,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The last n queries [n, H, D] of one sequence, rows ``rows`` of the batch, over its keys [m, H, D], from row
    ``start`` on."""
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    queries, keys, values = (x.to(kind).transpose(0, 1) for x in (q, k, v))  # [H, ., D]
    (heads, n, _), m = queries.shape, keys.shape[1]
    future = torch.ones(n, m, dtype=torch.bool, device=q.device).triu(m - n + 1)
    scores = (scale * queries @ keys.transpose(1, 2)).masked_fill(future, float("-inf"))
    lse = scores.logsumexp(-1)
    sites = site | torch.arange(heads, device=q.device).unsqueeze(1) << 16
    weights = apply_dropout(scores.softmax(-1), rows.expand(heads, n), dropout_p, rng, sites, start)
    return (weights @ values).transpose(0, 1).to(q.dtype), lse.transpose(0, 1)


def causal_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_len: int, dropout_p: float,
    rng: Tensor | None, site: int, scale: float, out: Tensor, lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    arguments = (q, k, v, offsets, max_len, dropout_p, rng, site, scale)
    grad_q, grad_k, grad_v = vjp(lambda *a: causal_attention(*a)[0], arguments, grad, (0, 1, 2))
    return grad_q, grad_k, grad_v


def last_query_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_len: int, dropout_p: float,
    rng: Tensor | None, site: int, scale: float, out: Tensor, lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    arguments = (q, k, v, offsets, max_len, dropout_p, rng, site, scale)
    grad_q, grad_k, grad_v = vjp(lambda *a: last_query_attention(*a)[0], arguments, grad, (0, 1, 2))
    return grad_q, grad_k, grad_v
