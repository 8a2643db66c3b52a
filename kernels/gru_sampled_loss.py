"""gru, a linear layer and sampled_loss, one after the other: kernels/gru.py, torch.mm and kernels/sampled_loss.py.

The layer is a plain matrix product, which cuBLAS does best; as one node there is no autograd between the three, and
the gradient of the states that do not count is written once, by the sum that puts the others in their rows. That sum
goes by sorted rows (kernels/segments.py): without atomics, should a row count twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .gru import gru, gru_backward
from .products import summed
from .sampled_loss import sampled_loss, sampled_loss_backward
from .segments import segment_sum


def gru_sampled_loss(*arguments: Any) -> tuple[Tensor, ...]:
    *gru_arguments, dense_weight, dense_bias, rows = arguments[:8]
    h, gates = gru(*gru_arguments)
    counted = h if rows is None else h.index_select(0, rows)
    y = torch.addmm(dense_bias.to(h.dtype), counted, dense_weight.to(h.dtype).t())
    losses, d_y, d_scores = sampled_loss(y, *arguments[8:])
    return losses, h, gates, y, d_y, d_scores


def gru_sampled_loss_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *gru_arguments, dense_weight, dense_bias, rows = arguments[:8]
    *loss_arguments, h, gates, y, d_y, d_scores = arguments[8:]
    grad_y, grad_item = sampled_loss_backward(grad, y, *loss_arguments, d_y, d_scores)
    counted = h if rows is None else h.index_select(0, rows)
    grad_dense_weight = summed(grad_y.t(), counted, dense_weight.dtype).to(dense_weight.dtype)
    grad_dense_bias = grad_y.sum(0, dtype=torch.float32).to(dense_bias.dtype)
    grad_h = torch.mm(grad_y, dense_weight.to(grad_y.dtype))
    if rows is not None:
        grad_h = segment_sum(rows, None, grad_h, None, h.shape[0], h.dtype)
    return *gru_backward(grad_h, *(*gru_arguments, h, gates)), grad_dense_weight, grad_dense_bias, grad_item
