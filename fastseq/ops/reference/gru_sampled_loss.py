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
    x_gates: Tensor,
    weight_hh: Tensor,
    offsets: Tensor,
    bias_hh: Tensor | None,
    max_len: int,
    dense_weight: Tensor,
    dense_bias: Tensor,
    rows: Tensor | None,
    *loss_arguments: Any,
) -> tuple[Tensor, ...]:
    h, gates = gru(x_gates, weight_hh, offsets, bias_hh, max_len)
    y = _project(h, dense_weight, dense_bias, rows)
    losses, d_y, d_scores = sampled_loss(y, *loss_arguments)
    return losses, h, gates, y, d_y, d_scores


def _losses(
    x_gates: Tensor,
    weight_hh: Tensor,
    offsets: Tensor,
    bias_hh: Tensor | None,
    max_len: int,
    dense_weight: Tensor,
    dense_bias: Tensor,
    rows: Tensor | None,
    *loss_arguments: Any,
) -> Tensor:
    h, _ = gru(x_gates, weight_hh, offsets, bias_hh, max_len)
    return loss_rows(_project(h, dense_weight, dense_bias, rows), *loss_arguments)


def gru_sampled_loss_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    inputs = arguments[:-5]  # what the forward pass saved is not needed here
    grads = vjp(_losses, inputs, grad, (0, 1, 3, 5, 6, 8))
    return tuple(grad.new_empty(0) if value is None else value for value in grads)
