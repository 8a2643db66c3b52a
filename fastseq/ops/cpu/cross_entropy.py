"""Softmax cross-entropy over the catalogue on the CPU: csrc/cross_entropy.cpp, losses and gradients in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from .._total import total
from ._arrays import array, compute_type, matrix, optional_array, prepared

Gradients = tuple[Tensor, Tensor, Tensor]


def _run(
    h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, softcap: float | None,
    bfloat16: bool, *, gradients: bool, upstream: Tensor | None = None,
) -> tuple[Tensor, Tensor, Gradients | None]:  # fmt: skip
    """Losses and log-sum-exps in the compute type, and the gradients of Σ upstream · loss in their inputs' types."""
    kind = compute_type(h.dtype)
    hidden, table = matrix(h, kind), matrix(weight, kind)
    shift = None if bias is None else prepared(bias, kind)
    loss, lse = torch.empty(h.shape[0], dtype=kind), torch.empty(h.shape[0], dtype=kind)
    dh, dweight, dbias = (torch.empty_like(x) if gradients and x is not None else None for x in (hidden, table, shift))
    _C.cross_entropy(
        array(hidden), array(table), array(shift), array(targets.contiguous()), ignore_index, softcap,
        optional_array(upstream, kind), array(loss), array(lse), *map(array, (dh, dweight, dbias)),
        bfloat16 or h.dtype == torch.bfloat16, torch.get_num_threads(),
    )  # fmt: skip
    if dh is None or dweight is None:
        return loss, lse, None
    no_bias = torch.empty(0, dtype=h.dtype)
    return loss, lse, (
        dh.to(h.dtype), dweight.to(weight.dtype), no_bias if dbias is None or bias is None else dbias.to(bias.dtype)
    )  # fmt: skip


def linear_cross_entropy(
    h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, softcap: float | None,
    bfloat16: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _run(h, weight, targets, bias, ignore_index, softcap, bfloat16, gradients=False)[:2]


def linear_cross_entropy_backward(
    grad: Tensor, h: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, bias: Tensor | None,
    ignore_index: int, softcap: float | None, bfloat16: bool,
) -> Gradients:  # fmt: skip
    settings = (h, weight, targets, bias, ignore_index, softcap, bfloat16)
    gradients = _run(*settings, gradients=True, upstream=grad)[2]
    assert gradients is not None
    return gradients


def summed_linear_cross_entropy(
    h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, softcap: float | None,
    bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    loss, _, gradients = _run(h, weight, targets, bias, ignore_index, softcap, bfloat16, gradients=True)
    assert gradients is not None
    return total(loss), *gradients
