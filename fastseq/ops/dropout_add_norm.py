"""Dropout, residual sum and layer normalisation in one pass: the end of both blocks of a transformer layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register
from .philox import check_dropout


def dropout_add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    x_bias: Tensor | None = None,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    rng: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """``LayerNorm(residual + dropout(x + x_bias))`` over the last dimension.

    Args:
        x: [..., d], float32, bfloat16 or float16 (computed in float32), or float64 on the CPU.
        residual: shape of ``x``.
        weight, bias: [d], the normalisation's.
        x_bias: [d] or None, added to ``x`` before dropout (the bias of the linear layer that made ``x``).
        eps: added to the variance.
        dropout_p: probability, 0 <= dropout_p < 1.
        rng: int64 [2], (seed, step); needed where dropout_p > 0. Counter: fastseq/ops/philox.py.
        site: which dropout of the model this is, 0 ... 0x7fff.

    Returns:
        Shape and dtype of ``x``. Gradients flow to ``x``, ``residual``, ``weight``, ``bias`` and ``x_bias``; those of
        the vectors do not depend on the number of threads.

    Raises:
        ValueError: if a shape or type does not fit, ``eps``, ``dropout_p`` or ``site`` is out of range, or ``rng`` is
            missing or malformed.

    Source: Ba, Kiros, Hinton, "Layer Normalization", 2016; post-norm layer of Vaswani et al., NeurIPS 2017.
    """
    _checks.floating(x=x, residual=residual, weight=weight, bias=bias, x_bias=x_bias)
    _checks.number("eps", eps, least=0)
    if residual.shape != x.shape:
        raise ValueError(f"residual is {list(residual.shape)}, expected the shape of x, {list(x.shape)}")
    for name, vector in (("weight", weight), ("bias", bias), ("x_bias", x_bias)):
        if vector is not None and vector.shape != x.shape[-1:]:
            raise ValueError(f"{name} is {list(vector.shape)}, expected {list(x.shape[-1:])}, the width of x")
    check_dropout(dropout_p, rng, site)
    return _dropout_add_norm(x, residual, weight, bias, x_bias, eps, dropout_p, rng, site)[0]


def _fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.new_empty(x.shape[:-1], dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.empty_like(x, memory_format=torch.contiguous_format), rows, torch.empty_like(rows)


def _fake_backward(
    grad: Tensor, x: Tensor, residual: Tensor, weight: Tensor, x_bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(x, memory_format=contiguous),
        torch.empty_like(residual, memory_format=contiguous),
        torch.empty_like(weight),
        torch.empty_like(weight),
        x.new_empty(0) if x_bias is None else torch.empty_like(x_bias),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, weight, _, x_bias, ctx.eps, ctx.p, rng, ctx.site = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, residual, weight, x_bias, mean, rstd, rng)


def _backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    x, residual, weight, x_bias, mean, rstd, rng = ctx.saved_tensors
    dx, dresidual, dweight, dbias, dx_bias = _dropout_add_norm_backward(
        grad, x, residual, weight, x_bias, mean, rstd, ctx.eps, ctx.p, rng, ctx.site
    )
    return dx, dresidual, dweight, dbias, None if x_bias is None else dx_bias, None, None, None, None


_dropout_add_norm_backward = register("dropout_add_norm_backward", fake=_fake_backward)

# The second and third output are the mean and 1 / sqrt(variance + eps) of every row, in the compute type; they and
# the empty gradient of an absent x_bias belong to the signature, so that backends mix.
_dropout_add_norm = register("dropout_add_norm", fake=_fake, setup_context=_setup_context, backward=_backward)
