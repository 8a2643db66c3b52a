"""Plain PyTorch twin of fastseq/ops/bias_gelu_dropout.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._autograd import vjp
from .dropout import dropout


def bias_gelu_dropout(x: Tensor, bias: Tensor, p: float, rng: Tensor | None, site: int) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return dropout(F.gelu(x.to(wide) + bias.to(wide)), p, rng, site).to(x.dtype)


def bias_gelu_dropout_backward(
    grad: Tensor, x: Tensor, bias: Tensor, p: float, rng: Tensor | None, site: int
) -> tuple[Tensor, Tensor]:
    dx, dbias = vjp(bias_gelu_dropout, (x, bias, p, rng, site), grad, wanted=(0, 1))
    return dx, dbias
