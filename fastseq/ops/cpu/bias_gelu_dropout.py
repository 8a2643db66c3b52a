"""dropout(gelu(x + bias)) on the CPU: csrc/bias_gelu_dropout.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import call, compute_type, matrix, prepared, seed_and_step


def bias_gelu_dropout(x: Tensor, bias: Tensor, p: float, rng: Tensor | None, site: int) -> Tensor:
    kind = compute_type(x.dtype)
    source = matrix(x, kind)
    result = torch.empty_like(source)
    call(_C.bias_gelu_dropout, source, prepared(bias, kind), result, p, *seed_and_step(rng), site)
    return result.view(x.shape).to(x.dtype)


def bias_gelu_dropout_backward(
    grad: Tensor, x: Tensor, bias: Tensor, p: float, rng: Tensor | None, site: int
) -> tuple[Tensor, Tensor]:
    kind = compute_type(x.dtype)
    source, b = matrix(x, kind), prepared(bias, kind)
    dx, dbias = torch.empty_like(source), torch.empty_like(b)
    call(_C.bias_gelu_dropout_backward, matrix(grad, kind), source, b, dx, dbias, p, *seed_and_step(rng), site)
    return dx.view(x.shape).to(x.dtype), dbias.to(bias.dtype)
