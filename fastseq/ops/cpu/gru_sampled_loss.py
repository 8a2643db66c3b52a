"""gru on the CPU, and behind it csrc/gru_sampled_loss.cpp: dense layer, loss and gradients in one pass over rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastseq import _C
from fastseq.ops._total import total
from fastseq.ops.sampled_loss import IGNORED

from ._arrays import call, optional, prepared
from .gru import gru, gru_backward
from .sampled_loss import item_gradient, without_ignored


def gru_sampled_loss(*arguments: Any) -> tuple[Tensor, ...]:
    *gru_arguments, dense_weight, dense_bias, rows = arguments[:8]
    item_weight, targets, negatives, loss, log_q, beta, _, scale = arguments[8:]
    h, gates = gru(*gru_arguments)
    states = prepared(h)
    kind, shared, negatives = states.dtype, negatives.dim() == 1, negatives.contiguous()
    (width, hidden), counted, count = dense_weight.shape, targets.shape[0], negatives.shape[-1]
    shapes = [(counted,), (counted, width), (counted, 1 if shared else 1 + count), (counted, hidden), (width, hidden),
              (width,), (count if shared else 0, width)]  # fmt: skip
    losses, y, d_scores, d_h, d_weight, d_bias, d_negatives = (torch.empty(shape, dtype=kind) for shape in shapes)
    call(
        _C.gru_sampled_loss, states, optional(rows, torch.int64), prepared(dense_weight, kind),
        prepared(dense_bias, kind), prepared(item_weight, kind), targets.contiguous(),
        without_ignored(targets, negatives)[2], loss, optional(log_q, kind), beta, IGNORED, scale, losses, y, d_scores,
        d_h, d_weight, d_bias, d_negatives if shared else None,
    )  # fmt: skip
    return total(losses), h, gates, y.to(h.dtype), d_scores, d_h.to(h.dtype), d_weight, d_bias, d_negatives


def gru_sampled_loss_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *gru_arguments, dense_weight, dense_bias, rows = arguments[:8]
    item_weight, targets, negatives, *_, padding_idx, _ = arguments[8:16]
    h, gates, y, *derivatives = arguments[16:]
    if grad != 1:
        derivatives = [grad.to(x.dtype) * x for x in derivatives]
    d_scores, d_h, d_weight, d_bias, d_negatives = derivatives
    grad_item = item_gradient(prepared(y), targets, negatives, d_scores, d_negatives, item_weight, padding_idx)
    if rows is not None:
        d_h = torch.zeros_like(h).index_add_(0, rows, d_h)
    return (
        *gru_backward(d_h, *gru_arguments, h, gates),
        d_weight.to(dense_weight.dtype, copy=True), d_bias.to(dense_bias.dtype, copy=True), grad_item,
    )  # fmt: skip
