"""A linear layer: the matrix products of a model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._dispatch import bfloat16_products, register


class _LinearRelu(torch.autograd.Function):
    """relu(x weightᵀ + bias) in one launch of cuBLAS, which PyTorch gives no gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch._addmm_activation(bias, x, weight.t())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2], output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        x, weight, output = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grads[0], output, 0)
        return grad @ weight, grad.t() @ x, grad.sum(0)


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``linear(x, weight, bias).relu()`` of x [N, K]; one launch on a GPU."""
    if x.device.type in ("cpu", "meta"):  # the second has no autocast
        return linear(x, weight, bias).relu()
    _checks.same_device("linear_relu", (x, weight, bias))
    if torch.is_autocast_enabled(x.device.type):
        x, weight, bias = (a.to(torch.get_autocast_dtype(x.device.type)) for a in (x, weight, bias))
    out: Tensor = _LinearRelu.apply(x, weight, bias)
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weightᵀ + bias``, as torch.nn.functional.linear.

    On the CPU products of float32 are C++ (csrc/linear.cpp), whose bits do not depend on the number of threads. Beside
    MKL, which PyTorch takes, they are twice as fast on one AMD processor, and 0.9 to 1.25 times as fast on another
    (docs/performance.md). Under
    ``torch.autocast("cpu", torch.bfloat16)`` operands are rounded to bfloat16 and multiplied in it; sums and results
    stay float32. On other devices PyTorch's own linear is the fast path.

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


# bfloat16: float32 operands are rounded to it before they are multiplied; other types take no notice.
_linear = register("linear", fake=_fake, differentiable=(0, 1, 2))
