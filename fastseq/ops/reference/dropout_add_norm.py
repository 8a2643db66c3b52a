"""Plain PyTorch twin of fastseq/ops/dropout_add_norm.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._autograd import vjp
from .dropout import dropout


def _summed(x: Tensor, residual: Tensor, x_bias: Tensor | None, p: float, rng: Tensor | None, site: int) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    branch = x.to(wide) if x_bias is None else x.to(wide) + x_bias.to(wide)
    return residual.to(wide) + dropout(branch, p, rng, site)


def _output(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor | None,
    eps: float, p: float, rng: Tensor | None, site: int,
) -> Tensor:  # fmt: skip
    summed = _summed(x, residual, x_bias, p, rng, site)
    weight, bias = weight.to(summed.dtype), bias.to(summed.dtype)
    return F.layer_norm(summed, summed.shape[-1:], weight, bias, eps).to(x.dtype)


def dropout_add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor | None,
    eps: float, p: float, rng: Tensor | None, site: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    summed = _summed(x, residual, x_bias, p, rng, site)
    rstd = torch.rsqrt(summed.var(dim=-1, correction=0) + eps)
    return _output(x, residual, weight, bias, x_bias, eps, p, rng, site), summed.mean(dim=-1), rstd


def dropout_add_norm_backward(
    grad: Tensor, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor | None,
    eps: float, p: float, rng: Tensor | None, site: int, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    arguments = (x, residual, weight, bias, x_bias, eps, p, rng, site)
    dx, dresidual, dweight, dbias, dx_bias = vjp(_output, arguments, grad, wanted=(0, 1, 2, 3, 4))
    return dx, dresidual, dweight, dbias, x.new_empty(0) if dx_bias is None else dx_bias
