"""Sampled losses on the CPU: csrc/sampled_loss.cpp; with shared negatives the scores are csrc/linear.cpp's products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastseq import _C
from fastseq.ops.sampled_loss import IGNORED

from ._arrays import call, optional, prepared, product, transposed_product


def without_ignored(targets: Tensor, negatives: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """Which rows do not count [N, 1], None if all do, and the ids with row 0 in their place."""
    ignored = (targets == IGNORED)[:, None]
    if not ignored.any():
        return None, targets, negatives
    per_row = negatives.masked_fill(ignored, 0) if negatives.dim() == 2 else negatives
    return ignored, targets.masked_fill(ignored[:, 0], 0), per_row


def sampled_loss(
    h: Tensor, item_weight: Tensor, targets: Tensor, negatives: Tensor, loss: str, log_q: Tensor | None, beta: float,
    padding_idx: int | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x = prepared(h)
    table = prepared(item_weight, x.dtype)
    ignored, targets, negatives = without_ignored(targets, negatives.contiguous())
    rows = torch.empty(x.shape[0], dtype=x.dtype)
    d_h = torch.empty_like(x)
    d_scores = torch.empty(x.shape[0], 1 + negatives.shape[-1], dtype=x.dtype)
    shared = None
    if negatives.dim() == 1:
        shared = table.index_select(0, negatives)
        d_scores[:, 1:] = product(x, shared)
    call(
        _C.sampled_loss, x, table, targets.contiguous(), negatives, loss, optional(log_q, x.dtype), beta, rows, d_h,
        d_scores,
    )  # fmt: skip
    if ignored is not None:
        rows.masked_fill_(ignored[:, 0], 0)
        d_h.masked_fill_(ignored, 0)
        d_scores.masked_fill_(ignored, 0)
    if shared is not None:
        d_h += product(d_scores[:, 1:], shared.t())
    if scale != 1.0:
        return rows * scale, d_h * scale, d_scores * scale
    return rows, d_h, d_scores


def sampled_loss_backward(
    grad: Tensor, h: Tensor, item_weight: Tensor, targets: Tensor, negatives: Tensor, *settings_and_saved: Any
) -> tuple[Tensor, Tensor]:
    *_, padding_idx, _, d_h, d_scores = settings_and_saved
    x = prepared(h)
    scale = grad.to(x.dtype).unsqueeze(1)
    coefficients, dense = scale * d_scores, None
    if negatives.dim() == 1:
        dense = transposed_product(coefficients, x)[1:]
        coefficients = coefficients[:, :1]
    grad_item = item_gradient(x, targets, negatives, coefficients, dense, item_weight, padding_idx)
    return (scale * d_h).to(h.dtype), grad_item


def item_gradient(
    x: Tensor, targets: Tensor, negatives: Tensor, coefficients: Tensor, dense: Tensor | None, item_weight: Tensor,
    padding_idx: int | None,
) -> Tensor:  # fmt: skip
    """The gradient of item_weight: coefficients [N, 1 + K] times the rows of x [N, d] by targets and negatives.

    With shared negatives coefficients [N, 1] are those of the targets, and dense [S, d] is the negatives' part: one
    row each, added like a target's.
    """
    _, targets, negatives = without_ignored(targets, negatives)
    if negatives.dim() == 1 and dense is not None:
        x, ids = torch.cat((x, dense)), torch.cat((targets, negatives)).unsqueeze(1)
        coefficients = torch.cat((coefficients, torch.ones_like(dense[:, :1])))
    else:
        ids = torch.cat((targets.unsqueeze(1), negatives), dim=1)
    grad_item = torch.empty(item_weight.shape, dtype=x.dtype)
    call(_C.item_gradient, ids, coefficients.contiguous(), x, -1 if padding_idx is None else padding_idx, grad_item)
    return grad_item.to(item_weight.dtype)
