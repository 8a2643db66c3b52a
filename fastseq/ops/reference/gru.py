"""Plain PyTorch twin of fastseq/ops/gru.py."""

from __future__ import annotations

import torch
from torch import Tensor

from ._autograd import vjp


def gru(
    x_gates: Tensor, weight_hh: Tensor, offsets: Tensor, bias_hh: Tensor | None, max_len: int
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x_gates.dtype, torch.float32)
    weight = weight_hh.to(wide)
    bias = None if bias_hh is None else bias_hh.to(wide)
    starts = offsets[:-1].long()
    lengths = (offsets[1:] - offsets[:-1]).long()
    state = x_gates.new_zeros(starts.shape[0], weight.shape[1], dtype=wide)
    nothing = x_gates[:0, : weight.shape[1]].to(wide)  # keeps a batch without events differentiable
    rows, states, gates = [starts[:0]], [nothing], [nothing.repeat(1, 4)]
    for t in range(min(max_len, x_gates.shape[0])):
        active = (lengths > t).nonzero().squeeze(1)
        row = starts[active] + t
        before = state[active]
        xr, xz, xn = x_gates[row].to(wide).chunk(3, dim=1)
        hr, hz, hn = torch.nn.functional.linear(before, weight, bias).chunk(3, dim=1)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        n = torch.tanh(xn + r * hn)
        after = (1 - z) * n + z * before
        state = state.index_copy(0, active, after)
        rows.append(row)
        states.append(after)
        gates.append(torch.cat((r, z, n, hn), dim=1))
    order = torch.cat(rows).argsort()
    return torch.cat(states)[order].to(x_gates.dtype), torch.cat(gates)[order].to(x_gates.dtype)


def gru_backward(
    grad: Tensor, x_gates: Tensor, weight_hh: Tensor, offsets: Tensor, bias_hh: Tensor | None, max_len: int,
    h: Tensor, saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    arguments = (x_gates, weight_hh, offsets, bias_hh, max_len)
    grad_x, grad_weight, grad_bias = vjp(lambda *a: gru(*a)[0], arguments, grad, (0, 1, 3))
    return grad_x, grad_weight, grad_x.new_empty(0) if grad_bias is None else grad_bias
