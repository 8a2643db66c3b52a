"""Softmax cross-entropy over the catalogue on the CPU: csrc/cross_entropy.cpp, losses and gradients in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastseq import _C

from .._total import total
from ._arrays import call, compute_type, matrix, optional

Gradients = tuple[Tensor, Tensor, Tensor]


def _run(
    h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, softcap: float | None,
    bfloat16: bool, *, gradients: bool, upstream: Tensor | None = None,
) -> tuple[Tensor, Tensor, Gradients | None]:  # fmt: skip
    """Losses and log-sum-exps in the compute type, and the gradients of Σ upstream · loss in their inputs' types."""
    kind = compute_type(h.dtype)
    hidden, table = matrix(h, kind), matrix(weight, kind)
    shift = optional(bias, kind)
    loss, lse = torch.empty(h.shape[0], dtype=kind), torch.empty(h.shape[0], dtype=kind)
    dh, dweight, dbias = (torch.empty_like(x) if gradients and x is not None else None for x in (hidden, table, shift))
    call(
        _C.cross_entropy, hidden, table, shift, targets.contiguous(), ignore_index, softcap, optional(upstream, kind),
        loss, lse, dh, dweight, dbias, bfloat16 or h.dtype == torch.bfloat16,
    )  # fmt: skip
    if dh is None or dweight is None:
        return loss, lse, None
    no_bias = torch.empty(0, dtype=h.dtype)
    return loss, lse, (
        dh.to(h.dtype), dweight.to(weight.dtype), no_bias if dbias is None or bias is None else dbias.to(bias.dtype)
    )  # fmt: skip


def linear_cross_entropy(*arguments: Any) -> tuple[Tensor, Tensor]:
    return _run(*arguments, gradients=False)[:2]


def linear_cross_entropy_backward(
    grad: Tensor, h: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, *settings: Any
) -> Gradients:
    gradients = _run(h, weight, targets, *settings, gradients=True, upstream=grad)[2]
    assert gradients is not None
    return gradients


def summed_linear_cross_entropy(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, _, gradients = _run(*arguments, gradients=True)
    assert gradients is not None
    return total(loss), *gradients
