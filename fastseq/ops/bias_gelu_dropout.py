"""Bias, exact GELU and dropout in one pass: the middle of a transformer layer's feed-forward block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register
from .philox import check_dropout


def bias_gelu_dropout(
    x: Tensor,
    bias: Tensor,
    *,
    dropout_p: float = 0.0,
    rng: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """``dropout(gelu(x + bias))`` with ``gelu(z) = z Φ(z)``, Φ the normal distribution function (erf, not tanh).

    Args:
        x: [..., C], float32, bfloat16 or float16 (computed in float32), or float64 on the CPU.
        bias: [C], in the type of ``x``; under autocast of any.
        dropout_p: probability, 0 <= dropout_p < 1.
        rng: int64 [2], (seed, step); needed where dropout_p > 0. Counter: fastseq/ops/philox.py.
        site: which dropout of the model this is, 0 ... 0x7fff.

    Returns:
        Shape and dtype of ``x``. The backward draws the mask again; the gradient of ``bias`` does not depend on the
        number of threads.

    Raises:
        ValueError: if ``bias`` is not [C] or of another type, ``dropout_p`` or ``site`` is out of range, or ``rng`` is
            missing or malformed.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
    """
    _checks.one_type(x=x, bias=bias)
    if bias.shape != x.shape[-1:]:
        raise ValueError(f"bias is {list(bias.shape)}, expected {list(x.shape[-1:])}: one value per column of x")
    check_dropout(dropout_p, rng, site)
    return _bias_gelu_dropout(x, bias, dropout_p, rng, site)


def _fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_bias_gelu_dropout = register("bias_gelu_dropout", fake=_fake, differentiable=(0, 1))
