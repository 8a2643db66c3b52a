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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    h, gates = gru(x_gates, weight_hh, offsets, bias_hh, max_len)
    y = _project(h, dense_weight, dense_bias, rows)
    losses, d_y, d_scores = sampled_loss(y, item_weight, targets, negatives, loss, log_q, beta, padding_idx, scale)
    wide, counted = d_y.dtype, h if rows is None else h.index_select(0, rows)
    d_negatives = d_y.new_empty(0, d_y.shape[1])
    if negatives.dim() == 1:
        d_negatives = d_scores[:, 1:].t() @ y.to(wide)
        d_scores = d_scores[:, :1].contiguous()
    return (
        losses.sum(), h, gates, y, d_scores, d_y @ dense_weight.to(wide), d_y.t() @ counted.to(wide),
        d_y.sum(0), d_negatives,
    )  # fmt: skip


def _loss(*arguments: Any) -> Tensor:
    *gru_arguments, dense_weight, dense_bias, rows = arguments[:8]
    return loss_rows(_project(gru(*gru_arguments)[0], dense_weight, dense_bias, rows), *arguments[8:]).sum()


def gru_sampled_loss_backward(
    grad: Tensor, x_gates: Tensor, weight_hh: Tensor, offsets: Tensor, bias_hh: Tensor | None, max_len: int,
    dense_weight: Tensor, dense_bias: Tensor, rows: Tensor | None, item_weight: Tensor, targets: Tensor,
    negatives: Tensor, loss: str, log_q: Tensor | None, beta: float, padding_idx: int | None, scale: float,
    h: Tensor, gates: Tensor, y: Tensor, d_scores: Tensor, d_h: Tensor, d_weight: Tensor, d_bias: Tensor,
    d_negatives: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = (
        x_gates, weight_hh, offsets, bias_hh, max_len, dense_weight, dense_bias, rows, item_weight, targets, negatives,
        loss, log_q, beta, padding_idx, scale,
    )  # fmt: skip
    dx, dweight, dbias, ddense, ddense_bias, ditem = vjp(_loss, inputs, grad, (0, 1, 3, 5, 6, 8))
    return dx, dweight, dx.new_empty(0) if bias_hh is None else dbias, ddense, ddense_bias, ditem
