"""Plain PyTorch twin of fastseq/ops/linear.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._autograd import vjp


def rounded(x: Tensor, bfloat16: bool) -> Tensor:
    """``x`` as an operand of a product: float32 rounded to bfloat16 where that is asked for."""
    return x.bfloat16().float() if bfloat16 and x.dtype == torch.float32 else x


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, bfloat16: bool) -> Tensor:
    return F.linear(rounded(x, bfloat16), rounded(weight, bfloat16), bias)


def linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, bfloat16: bool
) -> tuple[Tensor, Tensor, Tensor]:
    operands = (rounded(x, bfloat16), rounded(weight, bfloat16), None)
    dx, dweight, _ = vjp(F.linear, operands, rounded(grad, bfloat16), wanted=(0, 1, 2))
    return dx, dweight, grad.flatten(0, -2).sum(0) if bias is not None else weight.new_empty(0)
