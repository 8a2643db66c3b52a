"""Dropout from the shared random stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register
from .philox import check_dropout


def dropout(x: Tensor, p: float, rng: Tensor | None = None, site: int = 0) -> Tensor:
    """Zeroes each element with probability ``p`` and scales the rest by ``1 / (1 - p)``, p rounded to 1/65536.

    Args:
        x: [..., C], any floating type; flattened to [rows, C] for the counter (fastseq/ops/philox.py).
        p: probability, 0 <= p < 1; 0 returns ``x`` itself.
        rng: int64 [2], (seed, step); needed where p > 0.
        site: which dropout of the model this is, 0 ... 0x7fff.

    Returns:
        Shape and dtype of ``x``. The gradient uses the same mask, drawn again.

    Raises:
        ValueError: if ``x`` is a scalar or of another type, ``p`` or ``site`` is out of range, or ``rng`` is missing or
            malformed.

    Source: Srivastava et al., "Dropout", JMLR 2014; the mask is fastseq's own stream.
    """
    check_dropout(p, rng, site, name="p")
    _checks.floating(x=x)
    if x.dim() == 0:
        raise ValueError("x has no dimensions, expected [..., C]: the mask is counted by rows and columns")
    if p == 0.0:
        return x
    return _dropout(x, p, rng, site)


def _fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.p, rng, ctx.site = inputs
    ctx.save_for_backward(rng)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (rng,) = ctx.saved_tensors
    return _dropout(grad, ctx.p, rng, ctx.site), None, None, None


_dropout = register("dropout", fake=_fake, setup_context=_setup_context, backward=_backward)
