"""Plain PyTorch twin of fastseq/ops/cross_entropy.py. It makes the whole [N, V] matrix of logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._autograd import vjp
from .linear import rounded


def _losses(
    h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, softcap: float | None
) -> Tensor:
    logits = _logits(h, weight, bias, softcap)
    return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")


def _logits(h: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    wide = torch.promote_types(h.dtype, torch.float32)
    logits = F.linear(h.to(wide), weight.to(wide), None if bias is None else bias.to(wide))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def linear_cross_entropy(
    h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, softcap: float | None,
    bfloat16: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    h, weight = rounded(h, bfloat16), rounded(weight, bfloat16)
    losses = _losses(h, weight, targets, bias, ignore_index, softcap)
    return losses, torch.logsumexp(_logits(h, weight, bias, softcap), dim=-1)


def linear_cross_entropy_backward(
    grad: Tensor, h: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, bias: Tensor | None,
    ignore_index: int, softcap: float | None, bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    arguments = (rounded(h, bfloat16), rounded(weight, bfloat16), targets, bias, ignore_index, softcap)
    dh, dweight, dbias = vjp(_losses, arguments, grad, wanted=(0, 1, 3))
    return dh, dweight, h.new_empty(0) if dbias is None else dbias


def summed_linear_cross_entropy(
    h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, softcap: float | None,
    bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    # By hand: this runs inside a forward pass, where autograd does not record.
    wide = torch.promote_types(h.dtype, torch.float32)
    hidden, table = rounded(h, bfloat16).to(wide), rounded(weight, bfloat16).to(wide)
    logits = _logits(hidden, table, bias, softcap)
    counted = targets != ignore_index
    rows = counted.nonzero().squeeze(1)
    slope = logits.softmax(dim=-1)
    slope[rows, targets[rows]] -= 1.0
    slope[~counted] = 0.0
    if softcap is not None:
        slope *= 1.0 - (logits / softcap).square()
    total = F.cross_entropy(logits[rows], targets[rows], reduction="sum")
    dbias = h.new_empty(0) if bias is None else slope.sum(dim=0).to(bias.dtype)
    return total, (slope @ table).to(h.dtype), (slope.t() @ hidden).to(weight.dtype), dbias
