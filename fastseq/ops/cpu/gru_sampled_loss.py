"""gru, a linear layer and sampled_loss on the CPU, one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._arrays import prepared, product, transposed_product
from .gru import gru, gru_backward
from .sampled_loss import sampled_loss, sampled_loss_backward


def gru_sampled_loss(*arguments: Any) -> tuple[Tensor, ...]:
    *gru_arguments, dense_weight, dense_bias, rows = arguments[:8]
    h, gates = gru(*gru_arguments)
    counted = prepared(h if rows is None else h.index_select(0, rows))
    weight, bias = prepared(dense_weight, counted.dtype), prepared(dense_bias, counted.dtype)
    y = product(counted, weight, bias).to(h.dtype)
    losses, d_y, d_scores = sampled_loss(y, *arguments[8:])
    return losses, h, gates, y, d_y, d_scores


def gru_sampled_loss_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *gru_arguments, dense_weight, dense_bias, rows = arguments[:8]
    *loss_arguments, h, gates, y, d_y, d_scores = arguments[8:]
    grad_y, grad_item = sampled_loss_backward(grad, y, *loss_arguments, d_y, d_scores)
    grad_y = prepared(grad_y)
    counted = prepared(h if rows is None else h.index_select(0, rows))
    grad_dense_weight = transposed_product(grad_y, counted).to(dense_weight.dtype)
    grad_dense_bias = grad_y.sum(0).to(dense_bias.dtype)
    grad_h = product(grad_y, prepared(dense_weight, grad_y.dtype).t())
    if rows is not None:
        grad_h = torch.zeros(h.shape, dtype=grad_h.dtype).index_add_(0, rows, grad_h)
    return *gru_backward(grad_h, *(*gru_arguments, h, gates)), grad_dense_weight, grad_dense_bias, grad_item
