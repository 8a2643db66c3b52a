"""The GRU4Rec hot path as one autograd node: recurrence, projection, sampled loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register
from .gru import check_gru, check_gru_data
from .sampled_loss import check_sampled_data, check_sampled_loss, division, reduce


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
    scale, divisor = division(x_gates.device, reduction, divisor)
    losses: Tensor = _gru_sampled_loss(
        x_gates, weight_hh, offsets, bias_hh, max_len, dense_weight, dense_bias, rows, item_weight, targets,
        negatives, loss, log_q, beta, padding_idx, scale,
    )[0]  # fmt: skip
    return reduce(losses, targets, reduction, divisor)


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
    counted = events if rows is None else rows.shape[0]
    return (
        x_gates.new_empty(counted, dtype=wide),
        x_gates.new_empty(events, hidden),
        x_gates.new_empty(events, 4 * hidden),
        x_gates.new_empty(counted, dense_weight.shape[0]),
        x_gates.new_empty(counted, dense_weight.shape[0], dtype=wide),
        x_gates.new_empty(counted, 1 + negatives.shape[-1], dtype=wide),
    )


# Beside the losses: h and gates as of gru, y [N, d] the projected rows, d_y and d_scores as of sampled_loss.
# Gradients: of x_gates, weight_hh, bias_hh, dense_weight, dense_bias, item_weight.
_gru_sampled_loss = register(
    "gru_sampled_loss", fake=_fake, differentiable=(0, 1, 3, 5, 6, 8), check=_check_data, autocast=(0,)
)
