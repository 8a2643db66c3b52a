"""A linear layer: the matrix products of a model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._dispatch import bfloat16_products, register


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weightᵀ + bias``, as torch.nn.functional.linear.

    On the CPU products of float32 are C++ (csrc/linear.cpp): as fast as oneDNN, which PyTorch keeps for other types,
    and on AVX-512 processors that are not Intel's twice as fast as MKL, which it takes; bits do not depend on the
    number of threads. Under ``torch.autocast("cpu", torch.bfloat16)`` operands are rounded to bfloat16 and
    multiplied in it, sums and results stay float32. On other devices PyTorch's own linear is the fast path.

    Args:
        x: [..., K], any floating type.
        weight: [M, K], in the type of ``x`` (under autocast the wider of the two is computed in).
        bias: [M] or None.

    Returns:
        [..., M] in the type of ``x``.

    Raises:
        ValueError: if shapes or types disagree.
    """
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x is {list(x.shape)} and weight {list(weight.shape)}, expected [..., K] and [M, K]")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias is {list(bias.shape)}, expected {list(weight.shape[:1])}, one per row of weight")
    if x.device.type != "cpu":
        _checks.same_device("linear", (x, weight, bias))
        return F.linear(x, weight, bias)
    _checks.one_type(x=x, weight=weight, bias=bias)
    return _linear(x, weight, bias, bfloat16_products("cpu"))


def _fake(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _fake_backward(grad: Tensor, x: Tensor, weight: Tensor, has_bias: bool, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    contiguous = torch.contiguous_format
    dx = torch.empty_like(x, memory_format=contiguous)
    return dx, torch.empty_like(weight, memory_format=contiguous), weight.new_empty(weight.shape[0] if has_bias else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.bfloat16 = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias = _linear_backward(grad, *ctx.saved_tensors, ctx.has_bias, ctx.bfloat16)
    return dx, dweight, dbias if ctx.has_bias else None, None


_linear_backward = register("linear_backward", fake=_fake_backward)

# bfloat16: float32 operands are rounded to it before they are multiplied; other types take no notice.
_linear = register("linear", fake=_fake, setup_context=_setup_context, backward=_backward)
