"""A linear layer on the CPU: csrc/linear.cpp."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._arrays import compute_type, matrix, product, transposed_product

# Operands that are bfloat16 already stay with PyTorch: oneDNN reads them where they lie, C++ takes float32.


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, bfloat16: bool) -> Tensor:
    if x.dtype == torch.bfloat16:
        return F.linear(x, weight, bias)
    kind = compute_type(x.dtype)
    shift = None if bias is None else bias.detach().to(kind)
    out = product(matrix(x, kind), weight.detach().to(kind), shift, bfloat16=bfloat16)
    return out.view(*x.shape[:-1], weight.shape[0]).to(x.dtype)


def linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, bfloat16: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if x.dtype == torch.bfloat16:
        g, rows = matrix(grad, x.dtype), matrix(x, x.dtype)
        dbias = g.sum(0) if bias is not None else g.new_empty(0)
        return torch.mm(g, weight).view(x.shape), torch.mm(g.t(), rows), dbias
    kind = compute_type(x.dtype)
    g = matrix(grad, kind)
    dx = product(g, weight.detach().to(kind).t(), bfloat16=bfloat16)
    dweight = transposed_product(g, matrix(x, kind), bfloat16=bfloat16)
    dbias = g.sum(0) if bias is not None else g.new_empty(0)
    return dx.view(x.shape).to(x.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)
