"""gru on the CPU, and behind it the dense layer and the loss, with the gradients made with the loss.

With shared negatives that is csrc/gru_sampled_loss.cpp: scores exist for some rows at a time. With negatives of their
own the rows' layer, loss and products follow one another: one kernel for all had 0.9 to 1.0 of their speed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastseq import _C
from fastseq.ops._total import total
from fastseq.ops.sampled_loss import IGNORED

from ._arrays import call, optional, prepared, product, transposed_product
from .gru import gru, gru_backward
from .sampled_loss import item_gradient, sampled_loss


def gru_sampled_loss(*arguments: Any) -> tuple[Tensor, ...]:
    gru_arguments, (dense_weight, dense_bias, rows) = arguments[:5], arguments[5:8]
    item_weight, targets, negatives, loss, log_q, beta, _, scale = arguments[8:]
    h, gates = gru(*gru_arguments)
    states = prepared(h)
    kind = states.dtype
    weight, bias = prepared(dense_weight, kind), prepared(dense_bias, kind)
    width, hidden = weight.shape
    if negatives.dim() == 2:
        counted = states if rows is None else states.index_select(0, rows)
        y = product(counted, weight, bias).to(h.dtype)
        losses, d_y, d_scores = sampled_loss(y, *arguments[8:])
        d_h, d_weight = product(d_y, weight.t()), transposed_product(d_y, counted)
        d_bias, d_negatives = d_y.sum(0), weight.new_empty(0, width)
    else:
        n, count = targets.shape[0], negatives.shape[0]
        shapes = [(n,), (n, width), (n, 1), (n, hidden), (width, hidden), (width,), (count, width)]
        losses, y, d_scores, d_h, d_weight, d_bias, d_negatives = (torch.empty(shape, dtype=kind) for shape in shapes)
        call(
            _C.gru_sampled_loss, states, optional(rows, torch.int64), weight, bias, prepared(item_weight, kind),
            targets.contiguous(), negatives.contiguous(), loss, optional(log_q, kind), beta, IGNORED, scale, losses, y,
            d_scores, d_h, d_weight, d_bias, d_negatives,
        )  # fmt: skip
    return total(losses), h, gates, y.to(h.dtype), d_scores, d_h, d_weight, d_bias, d_negatives


def gru_sampled_loss_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    gru_arguments, (dense_weight, dense_bias, rows) = arguments[:5], arguments[5:8]
    item_weight, targets, negatives, *_, padding_idx, _ = arguments[8:16]
    h, gates, y, *derivatives = arguments[16:]
    if grad != 1:
        derivatives = [grad.to(x.dtype) * x for x in derivatives]
    d_scores, d_h, d_weight, d_bias, d_negatives = derivatives
    grad_item = item_gradient(prepared(y), targets, negatives, d_scores, d_negatives, item_weight, padding_idx)
    if rows is not None:
        d_h = torch.zeros(h.shape, dtype=d_h.dtype).index_add_(0, rows, d_h)
    return (
        *gru_backward(d_h, *(*gru_arguments, h, gates)),
        d_weight.to(dense_weight.dtype, copy=True), d_bias.to(dense_bias.dtype, copy=True), grad_item,
    )  # fmt: skip
