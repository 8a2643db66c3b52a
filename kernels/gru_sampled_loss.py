"""gru, and behind it the dense layer and sampled_loss with their gradients, made with the loss.

With negatives of their own, tiles of rows go from hidden state to the gradient of the hidden state in one kernel
(kernels/sampled_loss.py). It writes the layer's output and its gradient once, for what sums over rows: the gradient of
the table reads the one by item, a product of the library that of the layer's weight reads the other. With shared
negatives, whose scores are matrix products, or a layer too wide for the kernel, the products are the library's: some
rows at a time, so that their scores stay in the second-level cache.

The backward pass multiplies what is there with the upstream gradient, one launch, and sums the gradient of the table
by sorted ids (kernels/segments.py), as that of states, should a row count twice: without atomics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .gru import gru, gru_backward
from .products import operand, product_into, summed
from .sampled_loss import check_width, losses_of_rows, shared_losses
from .segments import segment_sum

WIDEST = 128  # of hidden size and width, for one kernel
SCORES = 1 << 22  # of shared negatives at a time: 16 MB, of an H100's 50 MB of second-level cache


def gru_sampled_loss(*arguments: Any) -> tuple[Tensor, ...]:
    gru_arguments, (dense_weight, dense_bias, rows) = arguments[:5], arguments[5:8]
    item_weight, targets, negatives, loss, log_q, beta, _, scale = arguments[8:]
    check_width(item_weight)
    h, gates = gru(*gru_arguments)
    (width, hidden), counted, count = dense_weight.shape, targets.shape[0], negatives.shape[-1]

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=h.device)

    item_weight, targets, negatives = item_weight.contiguous(), targets.contiguous(), negatives.contiguous()
    losses, y, d_h = new(counted), new(counted, width, dtype=h.dtype), new(counted, hidden)
    shared = negatives.dim() == 1
    d_scores, d_negatives = new(counted, 1 if shared else 1 + count), new(count if shared else 0, width)
    states = h if rows is None else h.index_select(0, rows)
    weight = dense_weight.to(h.dtype).contiguous()
    if shared or max(width, hidden) > WIDEST:
        d_y = new(counted, width)
        torch.addmm(dense_bias.to(h.dtype), states, weight.t(), out=y)
        if shared:
            table, step = item_weight[negatives].float(), max(1, SCORES // max(count, 1))
            scores = new(min(counted, step), count)
            d_negatives.zero_()
            for first in range(0, counted, step):
                part, some = slice(first, first + step), scores[: counted - first]
                shared_losses(
                    y[part], table, item_weight, targets[part], negatives, loss, log_q, beta, scale, losses[part],
                    d_y[part], some, d_scores[part, 0],
                )  # fmt: skip
                d_negatives.addmm_(some.t(), y[part].float())
        elif counted > 0:
            losses_of_rows(
                y, None, None, item_weight, targets, negatives, loss, log_q, beta, scale, losses, None, d_scores,
                d_y, None,
            )  # fmt: skip
        d_y = d_y.to(h.dtype)
        product_into(d_y, weight, d_h)
    else:
        states, weight = operand(states, "h", h.dtype), operand(weight, "dense_weight", h.dtype)
        d_y = new(counted, width, dtype=states.dtype)
        if counted > 0:
            losses_of_rows(
                states, weight, dense_bias.contiguous(), item_weight, targets, negatives, loss,
                log_q, beta, scale, losses, y, d_scores, d_y, d_h,
            )  # fmt: skip
    d_weight = summed(d_y.t(), states, torch.float32)
    return losses.sum(), h, gates, y, d_scores, d_h, d_weight, d_y.sum(0, dtype=torch.float32), d_negatives


def gru_sampled_loss_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    gru_arguments, (dense_weight, dense_bias, rows) = arguments[:5], arguments[5:8]
    item_weight, targets, negatives, *_, padding_idx, _ = arguments[8:16]
    h, gates, y, *derivatives = arguments[16:]
    d_scores, d_h, d_weight, d_bias, d_negatives = torch._foreach_mul(derivatives, grad)
    if negatives.dim() == 1:  # the negatives' part is one dense row each, added like a target's
        ids, source = torch.cat((targets, negatives)), torch.cat((y.float(), d_negatives))
        coefficients = torch.cat((d_scores[:, 0], torch.ones_like(d_negatives[:, 0])))
    else:
        ids, source, coefficients = torch.cat((targets[:, None], negatives), dim=1), y, d_scores
    grad_item = segment_sum(ids, coefficients, source, padding_idx, item_weight.shape[0], item_weight.dtype)
    if rows is not None:
        d_h = segment_sum(rows, None, d_h, None, h.shape[0], h.dtype)
    return (
        *gru_backward(d_h, *(*gru_arguments, h, gates)), d_weight.to(dense_weight.dtype), d_bias.to(dense_bias.dtype),
        grad_item,
    )  # fmt: skip
