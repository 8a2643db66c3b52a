"""GRU on the CPU: csrc/gru.cpp for the recurrence, and one matrix product for the weight's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import call, optional, prepared, transposed_product

_SLICE_EVENTS = 1 << 14  # of the backward pass


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
    state, gates = prepared(h), prepared(saved)
    weight = prepared(weight_hh, state.dtype)
    upstream = prepared(grad, state.dtype)
    grad_x = torch.empty(x_gates.shape, dtype=state.dtype)
    grad_weight, grad_bias = torch.zeros_like(weight), weight.new_zeros(0 if bias_hh is None else weight.shape[0])
    # What only the weight's gradient needs exists for some sequences at a time.
    sequences, events = offsets.shape[0] - 1, state.shape[0]
    step = max(1, sequences * _SLICE_EVENTS // max(1, events))
    for first in range(0, sequences, step):
        part = offsets[first : first + step + 1]
        start, stop = int(part[0]), int(part[-1])
        grad_hidden = grad_x.new_empty(stop - start, grad_x.shape[1])
        previous = torch.empty_like(state[start:stop])
        carry = state.new_empty(part.shape[0] - 1, state.shape[1])
        call(
            _C.gru_backward, upstream[start:stop], weight, part - start, state[start:stop], gates[start:stop],
            grad_x[start:stop], grad_hidden, previous, carry,
        )  # fmt: skip
        grad_weight += transposed_product(grad_hidden, previous)
        if bias_hh is not None:
            grad_bias += grad_hidden.sum(0)
    grad_bias = grad_bias.to(x_gates.dtype if bias_hh is None else bias_hh.dtype)
    return grad_x.to(x_gates.dtype), grad_weight.to(weight_hh.dtype), grad_bias
