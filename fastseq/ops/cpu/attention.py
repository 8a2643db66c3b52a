"""Causal attention on the CPU: csrc/attention.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import array, compute_type, prepared, seed_and_step


def causal_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return _forward(_C.causal_attention, q, k, v, offsets, *settings)


def last_query_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return _forward(_C.last_query_attention, q, k, v, offsets, *settings)


def causal_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(_C.causal_attention_backward, grad, q, k, v, out, lse, offsets, *settings)


def last_query_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(_C.last_query_attention_backward, grad, q, k, v, out, lse, offsets, *settings)


def _head_rows(x: Tensor) -> Tensor:
    """``x`` [rows, H, D] in its compute type with each row contiguous; no copy of a slice of a joint projection."""
    x = x.detach().to(compute_type(x.dtype))
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _forward(
    kernel: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_len: int,
    dropout_p: float,
    rng: Tensor | None,
    site: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    out = torch.empty(q.shape, dtype=compute_type(q.dtype))
    lse = torch.empty(q.shape[:2], dtype=out.dtype)
    kernel(
        *(array(_head_rows(x)) for x in (q, k, v)),
        array(out),
        array(lse),
        array(offsets.contiguous()),
        max_len,
        dropout_p,
        *seed_and_step(rng),
        site,
        scale,
        torch.get_num_threads(),
    )
    return out.to(q.dtype), lse


def _backward(
    kernel: Any,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    max_len: int,
    dropout_p: float,
    rng: Tensor | None,
    site: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = [torch.empty(x.shape, dtype=lse.dtype) for x in (q, k, v)]
    kernel(
        array(prepared(grad)),
        *(array(_head_rows(x)) for x in (q, k, v)),
        array(lse.contiguous()),
        *(array(x) for x in grads),
        array(offsets.contiguous()),
        max_len,
        dropout_p,
        *seed_and_step(rng),
        site,
        scale,
        torch.get_num_threads(),
    )
    grad_q, grad_k, grad_v = (x.to(q.dtype) for x in grads)
    return grad_q, grad_k, grad_v
