"""A linear layer on the CPU: csrc/linear.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from ._arrays import compute_type
from ._products import product, transposed_product
from ._rows import matrix


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, bfloat16: bool) -> Tensor:
    kind = compute_type(x.dtype)
    shift = None if bias is None else bias.detach().to(kind)
    out = product(matrix(x, kind), weight.detach().to(kind), shift, bfloat16=bfloat16 or x.dtype == torch.bfloat16)
    return out.view(*x.shape[:-1], weight.shape[0]).to(x.dtype)


def linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, has_bias: bool, bfloat16: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kind, bfloat16 = compute_type(x.dtype), bfloat16 or x.dtype == torch.bfloat16
    g = matrix(grad, kind)
    dx = product(g, weight.detach().to(kind).t(), bfloat16=bfloat16)
    dweight = transposed_product(g, matrix(x, kind), bfloat16=bfloat16)
    dbias = g.sum(0) if has_bias else g.new_empty(0)
    return dx.view(x.shape).to(x.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)
