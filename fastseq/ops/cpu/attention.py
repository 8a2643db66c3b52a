"""Causal attention on the CPU: csrc/attention.cpp."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import call, compute_type, prepared, seed_and_step


def _head_rows(x: Tensor) -> Tensor:
    """``x`` [rows, H, D] in its compute type with each row contiguous; no copy of a slice of a joint projection."""
    x = x.detach().to(compute_type(x.dtype))
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def _settings(offsets: Tensor, max_len: int, p: float, rng: Tensor | None, site: int, scale: float) -> tuple[Any, ...]:
    return offsets.contiguous(), max_len, p, *seed_and_step(rng), site, scale


def _forward(kernel: Any, q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    out = torch.empty(q.shape, dtype=compute_type(q.dtype))
    lse = torch.empty(q.shape[:2], dtype=out.dtype)
    call(kernel, *map(_head_rows, (q, k, v)), out, lse, *_settings(*settings))
    return out.to(q.dtype), lse


def _backward(
    kernel: Any, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *settings_and_saved: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *settings, _, lse = settings_and_saved
    grads = [torch.empty(x.shape, dtype=lse.dtype) for x in (q, k, v)]
    call(kernel, prepared(grad), *map(_head_rows, (q, k, v)), lse.contiguous(), *grads, *_settings(*settings))
    grad_q, grad_k, grad_v = (x.to(q.dtype) for x in grads)
    return grad_q, grad_k, grad_v


causal_attention = partial(_forward, _C.causal_attention)
last_query_attention = partial(_forward, _C.last_query_attention)
causal_attention_backward = partial(_backward, _C.causal_attention_backward)
last_query_attention_backward = partial(_backward, _C.last_query_attention_backward)
