"""GRU on the CPU: csrc/gru.cpp for the recurrence, and one matrix product for the weight's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import call, optional, prepared, transposed_product


def gru(
    x_gates: Tensor, weight_hh: Tensor, offsets: Tensor, bias_hh: Tensor | None, max_len: int
) -> tuple[Tensor, Tensor]:
    x = prepared(x_gates)
    weight = prepared(weight_hh, x.dtype)
    rows, hidden = x.shape[0], weight.shape[1]
    h = torch.empty(rows, hidden, dtype=x.dtype)
    saved = torch.empty(rows, 4 * hidden, dtype=x.dtype)
    call(_C.gru, x, weight, optional(bias_hh, x.dtype), offsets.contiguous(), max_len, h, saved)
    return h.to(x_gates.dtype), saved.to(x_gates.dtype)


def gru_backward(
    grad: Tensor, x_gates: Tensor, weight_hh: Tensor, offsets: Tensor, bias_hh: Tensor | None, max_len: int,
    h: Tensor, saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    state = prepared(h)
    grad_x = torch.empty(x_gates.shape, dtype=state.dtype)
    grad_hidden = torch.empty_like(grad_x)
    previous = torch.empty_like(state)
    carry = torch.empty(offsets.shape[0] - 1, state.shape[1], dtype=state.dtype)
    call(
        _C.gru_backward, prepared(grad, state.dtype), prepared(weight_hh, state.dtype), offsets.contiguous(), state,
        prepared(saved), grad_x, grad_hidden, previous, carry,
    )  # fmt: skip
    grad_weight = transposed_product(grad_hidden, previous)
    grad_bias = grad_hidden.new_empty(0) if bias_hh is None else grad_hidden.sum(0)
    return grad_x.to(x_gates.dtype), grad_weight.to(weight_hh.dtype), grad_bias.to(weight_hh.dtype)
