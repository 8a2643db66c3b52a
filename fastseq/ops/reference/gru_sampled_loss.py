"""Plain PyTorch twin of fastseq/ops/gru_sampled_loss.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._autograd import vjp
from .gru import gru
from .sampled_loss import loss_rows, sampled_loss


def _project(h: Tensor, dense_weight: Tensor, dense_bias: Tensor, rows: Tensor | None) -> Tensor:
    wide = torch.promote_types(h.dtype, torch.float32)
    counted = h if rows is None else h.index_select(0, rows)
    return F.linear(counted.to(wide), dense_weight.to(wide), dense_bias.to(wide)).to(h.dtype)


def gru_sampled_loss(
    x_gates: Tensor, weight_hh: Tensor, offsets: Tensor, bias_hh: Tensor | None, max_len: int, dense_weight: Tensor,
    dense_bias: Tensor, rows: Tensor | None, item_weight: Tensor, targets: Tensor, negatives: Tensor, loss: str,
    log_q: Tensor | None, beta: float, padding_idx: int | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    h, gates = gru(x_gates, weight_hh, offsets, bias_hh, max_len)
    y = _project(h, dense_weight, dense_bias, rows)
    losses, d_y, d_scores = sampled_loss(y, item_weight, targets, negatives, loss, log_q, beta, padding_idx, scale)
    return losses, h, gates, y, d_y, d_scores


def _losses(*arguments: Any) -> Tensor:
    *gru_arguments, dense_weight, dense_bias, rows = arguments[:8]
    return loss_rows(_project(gru(*gru_arguments)[0], dense_weight, dense_bias, rows), *arguments[8:])


def gru_sampled_loss_backward(
    grad: Tensor, x_gates: Tensor, weight_hh: Tensor, offsets: Tensor, bias_hh: Tensor | None, max_len: int,
    dense_weight: Tensor, dense_bias: Tensor, rows: Tensor | None, item_weight: Tensor, targets: Tensor,
    negatives: Tensor, loss: str, log_q: Tensor | None, beta: float, padding_idx: int | None, scale: float,
    h: Tensor, gates: Tensor, y: Tensor, d_y: Tensor, d_scores: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = (
        x_gates, weight_hh, offsets, bias_hh, max_len, dense_weight, dense_bias, rows, item_weight, targets, negatives,
        loss, log_q, beta, padding_idx, scale,
    )  # fmt: skip
    dx, dweight, dbias, ddense, ddense_bias, ditem = vjp(_losses, inputs, grad, (0, 1, 3, 5, 6, 8))
    return dx, dweight, dx.new_empty(0) if bias_hh is None else dbias, ddense, ddense_bias, ditem
