"""Softmax cross-entropy over the whole catalogue, straight from hidden states and the item table."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from . import _checks
from ._dispatch import bfloat16_products, register
from ._total import total


def linear_cross_entropy(
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["none", "mean", "sum"] = "mean",
    softcap: float | None = None,
) -> Tensor:
    """``cross_entropy(h weightᵀ + bias, targets)``; the [N, V] logits never exist at once.

    A sum or mean with gradients takes the three matrix products of materialised logits, its gradients made together
    with the loss; a loss per row takes four, since its logits are computed again. So does a sum on a GPU over more
    items than a chunk of 40 MB, for its L2 cache, holds rows of (kernels/cross_entropy.py). Under autocast to bfloat16
    the products' operands are rounded to it; sums, logits and losses stay float32. On a GPU the gradients are summed in
    float32, and the logits' are rounded to bfloat16 where the operands are.

    Args:
        h: [N, d], float32, bfloat16 or float16 (computed in float32), or float64 on the CPU.
        weight: [V, d], of the type of ``h`` (under autocast of any).
        targets: int64 [N], 0 ... V - 1 or ``ignore_index``.
        bias: [V] or None.
        ignore_index: rows with this target have loss 0, no gradient, and are not counted by "mean".
        reduction: "none" (a loss per row), "sum", or "mean" over the rows not ignored (0 where all are, not NaN).
        softcap: logits become ``softcap * tanh(logits / softcap)`` first (None: they stay).

    Returns:
        [N] for "none", else a scalar; natural logarithm; float32, or float64 for float64 ``h``.

    Raises:
        ValueError: if shapes or dtypes disagree, ``reduction`` is unknown, ``softcap`` is not positive, or, on the
            CPU or with FASTSEQ_CHECK=1, a target is out of range. On a GPU without it such a row's loss is NaN.

    Source: the chunked form of Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", ICLR 2025.
    """
    _checks.one_type(h=h, weight=weight, bias=bias)
    if h.dim() != 2 or weight.dim() != 2 or weight.shape[1] != h.shape[1]:
        raise ValueError(f"h is {list(h.shape)} and weight {list(weight.shape)}, expected [N, d] and [V, d]")
    if targets.dtype != torch.int64 or targets.shape != h.shape[:1]:
        raise ValueError(f"targets is {targets.dtype} {list(targets.shape)}, expected torch.int64 {list(h.shape[:1])}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias is {list(bias.shape)}, expected {list(weight.shape[:1])}, one per row of weight")
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}, expected 'none', 'mean' or 'sum'")
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise ValueError(f"softcap is {softcap}, expected a positive number or None")
    settings = (h, weight, targets, bias, ignore_index, softcap, bfloat16_products(h.device.type))
    if reduction == "none":
        return _linear_cross_entropy(*settings)[0]
    if torch.is_grad_enabled() and any(x.requires_grad for x in (h, weight)):
        summed = _summed_linear_cross_entropy(*settings)[0]
    else:
        summed = total(_linear_cross_entropy(*settings)[0])
    return summed if reduction == "sum" else summed / (targets != ignore_index).sum().clamp(min=1)


def _check_data(h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, *_: Any) -> None:
    counted = targets.masked_fill(targets == ignore_index, 0) if weight.shape[0] else targets
    _checks.in_range("targets", counted, weight.shape[0], f"0 <= target < {weight.shape[0]}, the rows of weight")


def _fake(h: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    losses = h.new_empty(h.shape[0], dtype=torch.promote_types(h.dtype, torch.float32))
    return losses, torch.empty_like(losses)


def _fake_backward(
    grad: Tensor, h: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dbias = h.new_empty(0) if bias is None else torch.empty_like(bias)
    contiguous = torch.contiguous_format
    return torch.empty_like(h, memory_format=contiguous), torch.empty_like(weight, memory_format=contiguous), dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    h, weight, targets, bias, ctx.ignore_index, ctx.softcap, ctx.bfloat16 = inputs
    _, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(h, weight, targets, lse, bias)


def _backward(ctx: Any, grad: Tensor, unused: Any) -> tuple[Tensor | None, ...]:
    h, weight, targets, lse, bias = ctx.saved_tensors
    dh, dweight, dbias = _linear_cross_entropy_backward(
        grad, h, weight, targets, lse, bias, ctx.ignore_index, ctx.softcap, ctx.bfloat16
    )
    return dh, dweight, None, None if bias is None else dbias, None, None, None


def _fake_summed(h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, *settings: Any) -> tuple[Tensor, ...]:
    total = h.new_empty((), dtype=torch.promote_types(h.dtype, torch.float32))
    return total, *_fake_backward(total, h, weight, targets, total, bias, *settings)


def _setup_summed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.has_bias = inputs[3] is not None
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _summed_backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # what was saved is constant: its part of a second derivative would be left out
        raise RuntimeError("fastseq::summed_linear_cross_entropy has no second derivative: leave out create_graph=True")
    dh, dweight, dbias = (gradient * grad.to(gradient.dtype) for gradient in ctx.saved_tensors)
    return dh, dweight, None, dbias if ctx.has_bias else None, None, None, None


_linear_cross_entropy_backward = register("linear_cross_entropy_backward", fake=_fake_backward)

# The second output is the logarithm of the partition function of every row, in the type of the losses.
_linear_cross_entropy = register(
    "linear_cross_entropy", fake=_fake, setup_context=_setup_context, backward=_backward, check=_check_data
)

# The sum of the losses, and its gradients by h, weight and bias (empty where there is none).
_summed_linear_cross_entropy = register(
    "summed_linear_cross_entropy",
    fake=_fake_summed,
    setup_context=_setup_summed,
    backward=_summed_backward,
    check=_check_data,
)
