"""LayerNorm(residual + dropout(x + x_bias)) on the CPU: csrc/dropout_add_norm.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import call, compute_type, matrix, optional, prepared, seed_and_step


def dropout_add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor | None,
    eps: float, p: float, rng: Tensor | None, site: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    kind = compute_type(x.dtype)
    source = matrix(x, kind)
    y = torch.empty_like(source)
    mean = torch.empty(source.shape[0], dtype=kind)
    rstd = torch.empty_like(mean)
    call(
        _C.dropout_add_norm, source, matrix(residual, kind), prepared(weight, kind), prepared(bias, kind),
        optional(x_bias, kind), y, mean, rstd, eps, p, *seed_and_step(rng), site,
    )  # fmt: skip
    return y.view(x.shape).to(x.dtype), mean.view(x.shape[:-1]), rstd.view(x.shape[:-1])


def dropout_add_norm_backward(
    grad: Tensor, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor | None,
    eps: float, p: float, rng: Tensor | None, site: int, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    kind = compute_type(x.dtype)
    source, w = matrix(x, kind), prepared(weight, kind)
    dx, dresidual = torch.empty_like(source), torch.empty_like(source)
    dweight, dbias = torch.empty_like(w), torch.empty_like(w)
    dx_bias = torch.empty(0 if x_bias is None else w.shape[0], dtype=kind)
    call(
        _C.dropout_add_norm_backward, matrix(grad, kind), source, matrix(residual, kind), w, optional(x_bias, kind),
        prepared(mean.flatten(), kind), prepared(rstd.flatten(), kind), dx, dresidual, dweight, dbias,
        None if x_bias is None else dx_bias, p, *seed_and_step(rng), site,
    )  # fmt: skip
    return (
        dx.view(x.shape).to(x.dtype),
        dresidual.view(x.shape).to(residual.dtype),
        dweight.to(weight.dtype),
        dbias.to(bias.dtype),
        dx_bias.to(x.dtype if x_bias is None else x_bias.dtype),
    )
