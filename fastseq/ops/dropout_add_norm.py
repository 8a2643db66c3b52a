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
        residual: shape of ``x``. It and the vectors may be of another floating type each.
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


# The second and third output are the mean and 1 / sqrt(variance + eps) of every row, in the compute type.
_dropout_add_norm = register("dropout_add_norm", fake=_fake, differentiable=(0, 1, 2, 3, 4))
