"""A linear layer: cuBLAS through PyTorch; there is no kernel of our own.

A Triton product of these shapes would at best equal cuBLAS, and what a kernel could fuse, the bias and what follows it,
is in bias_gelu_dropout and dropout_add_norm already. ``ops.linear`` gives CUDA tensors to PyTorch before it gets here,
so that inductor sees the product; this serves CPU tensors where Triton is asked for by name.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _rounded(x: Tensor, bfloat16: bool) -> Tensor:
    """``x`` as an operand: float32 rounded to bfloat16 where that is asked for, its products exact in float32."""
    return x.bfloat16().float() if bfloat16 and x.dtype == torch.float32 else x


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, bfloat16: bool) -> Tensor:
    return F.linear(_rounded(x, bfloat16), _rounded(weight, bfloat16), bias)


def linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, bfloat16: bool
) -> tuple[Tensor, Tensor, Tensor]:
    count = math.prod(x.shape[:-1])
    rows, columns = grad.reshape(count, weight.shape[0]), x.reshape(count, weight.shape[1])
    upstream = _rounded(rows, bfloat16)
    dx = upstream.mm(_rounded(weight, bfloat16)).view(x.shape)
    dweight = upstream.t().mm(_rounded(columns, bfloat16))
    return dx, dweight, rows.sum(0) if bias is not None else weight.new_empty(0)
