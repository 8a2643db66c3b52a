"""The GRU4Rec hot path as one autograd node: recurrence, projection, sampled loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register
from .gru import check_gru, check_gru_data, gru
from .linear import linear
from .sampled_loss import IGNORED, check_divisor, check_sampled_data, check_sampled_loss, sampled_loss


def gru_sampled_loss(
    x_gates: Tensor,
    weight_hh: Tensor,
    offsets: Tensor,
    dense_weight: Tensor,
    dense_bias: Tensor,
    rows: Tensor | None,
    item_weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    *,
    max_len: int,
    bias_hh: Tensor | None = None,
    loss: str = "bpr",
    log_q: Tensor | None = None,
    beta: float = 1.0,
    reduction: str = "mean",
    padding_idx: int | None = None,
    divisor: float = 1,
) -> Tensor:
    """``sampled_loss(linear(gru(x_gates)[rows]))``, which see for what is not said here.

    A mean or sum is one node that makes its gradients with the loss, all but that of the item table. On a GPU one
    kernel behind the recurrence has the dense layer, the item rows, the loss and the states' gradient. Scores against
    shared negatives exist for some rows at a time: on the CPU 1.8 to 2.4 times as fast as the three ops for 4,096. With
    negatives of each row's own the CPU runs the parts in turn, as one kernel was no faster (0.97 to 1.02). With
    reduction "none", whose losses have an upstream gradient each, the three ops follow one another.

    Args:
        x_gates: [T, 3H].
        weight_hh: [3H, H].
        offsets: int32 [B + 1].
        dense_weight: [d, H].
        dense_bias: [d].
        rows: int64 [N], the events whose output counts; None for all T, in order.
        item_weight: [V + 1, d].
        targets: int64 [N].
        negatives: int64 [N, K] or [S].
        max_len: at least the length of the longest sequence.
        bias_hh: [3H] or None.
        loss, log_q, beta, reduction, padding_idx, divisor: as of sampled_loss.

    Returns:
        The loss, as sampled_loss gives it. Differentiable in x_gates, weight_hh, bias_hh, dense_weight, dense_bias and
        item_weight.

    Raises:
        ValueError, IndexError: as gru and sampled_loss.

    Source: Hidasi et al., "Session-based recommendations with recurrent neural networks", ICLR 2016.
    """
    check_gru(x_gates, weight_hh, offsets, bias_hh)
    _checks.floating(x_gates=x_gates, dense_weight=dense_weight, dense_bias=dense_bias)
    hidden = weight_hh.shape[1]
    if dense_weight.dim() != 2 or dense_weight.shape[1] != hidden:
        raise ValueError(f"dense_weight has shape {list(dense_weight.shape)}, expected [d, {hidden}]")
    if dense_bias.shape != dense_weight.shape[:1]:
        expected = f"[{dense_weight.shape[0]}]"
        raise ValueError(f"dense_bias has shape {list(dense_bias.shape)}, expected {expected}")
    if rows is not None and (rows.dim() != 1 or rows.dtype != torch.int64):
        raise ValueError(f"rows is {rows.dtype} {list(rows.shape)}, expected torch.int64 [N]")
    counted = x_gates.shape[0] if rows is None else rows.shape[0]
    projected = x_gates.new_empty(counted, dense_weight.shape[0], device="meta")
    check_sampled_loss(projected, item_weight, targets, negatives, loss, log_q, beta, reduction, padding_idx)
    check_divisor(reduction, divisor)
    if reduction == "none":
        h = gru(x_gates, weight_hh, offsets, bias_hh=bias_hh, max_len=max_len)
        if rows is not None:
            if _checks.wanted(rows.device.type):
                check_rows(rows, h.shape[0])
            h = h.index_select(0, rows)
        return sampled_loss(
            linear(h, dense_weight.to(h.dtype), dense_bias.to(h.dtype)), item_weight, targets, negatives, loss=loss,
            log_q=log_q, beta=beta, reduction="none", padding_idx=padding_idx,
        )  # fmt: skip
    total: Tensor = _gru_sampled_loss(
        x_gates, weight_hh, offsets, bias_hh, max_len, dense_weight, dense_bias, rows, item_weight, targets,
        negatives, loss, log_q, beta, padding_idx, 1 / divisor,
    )[0]  # fmt: skip
    return total if reduction == "sum" else total / (targets != IGNORED).sum().clamp(min=1)


def check_rows(rows: Tensor | None, events: int) -> None:
    """For the implementations that run where looking at ``rows`` costs nothing.

    Raises:
        IndexError: naming the row that is not one of the events.
    """
    wrong = None if rows is None else rows[(rows < 0) | (rows >= events)]
    if wrong is not None and wrong.numel():
        raise IndexError(f"rows holds {int(wrong[0])}, expected 0 <= row < {events}, the number of events")


def _check_data(x_gates: Tensor, *arguments: Any) -> None:
    check_gru_data(x_gates, *arguments[:4])
    rows, item_weight, targets, negatives = arguments[6:10]
    check_rows(rows, x_gates.shape[0])
    check_sampled_data(item_weight, targets, negatives)


def _fake(x_gates: Tensor, weight_hh: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    dense_weight, _, rows, _, _, negatives = arguments[3:9]
    wide = torch.promote_types(x_gates.dtype, torch.float32)
    events, hidden = x_gates.shape[0], weight_hh.shape[1]
    counted, width = events if rows is None else rows.shape[0], dense_weight.shape[0]
    count, shared = negatives.shape[-1], negatives.dim() == 1
    return (
        x_gates.new_empty((), dtype=wide),
        x_gates.new_empty(events, hidden),
        x_gates.new_empty(events, 4 * hidden),
        x_gates.new_empty(counted, width),
        x_gates.new_empty(counted, 1 if shared else 1 + count, dtype=wide),
        x_gates.new_empty(counted, hidden, dtype=wide),
        x_gates.new_empty(width, hidden, dtype=wide),
        x_gates.new_empty(width, dtype=wide),
        x_gates.new_empty(count if shared else 0, width, dtype=wide),
    )


# Beside the sum of the losses times scale: h and gates as of gru; y [N, d], the dense layer's output, and the sum's
# derivatives: by the scores d_scores [N, 1 + K], of the targets alone [N, 1] with shared negatives, by the counted
# states d_h [N, H], by the layer d_weight and d_bias, and by the rows of the table for shared negatives d_negatives
# [S, d]. The gradient of item_weight is what is left to the backward pass, with a multiplication of the others.
# Gradients: of x_gates, weight_hh, bias_hh, dense_weight, dense_bias, item_weight.
_gru_sampled_loss = register(
    "gru_sampled_loss", fake=_fake, differentiable=(0, 1, 3, 5, 6, 8), check=_check_data, autocast=(0,)
)
