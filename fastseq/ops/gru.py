"""Gated recurrent unit over jagged sequences, from input gates computed beforehand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register


def gru(
    x_gates: Tensor,
    weight_hh: Tensor,
    offsets: Tensor,
    *,
    bias_hh: Tensor | None = None,
    max_len: int,
) -> Tensor:
    """One layer of nn.GRU over every sequence, from a zero state. More layers are a loop over this.

    For event t of a sequence, with a = weight_hh h[t-1] + bias_hh and both a and x_gates[t] split into (r, z, n)::

        r = sigmoid(x_r + a_r)    z = sigmoid(x_z + a_z)    n = tanh(x_n + r * a_n)
        h[t] = (1 - z) * n + z * h[t-1]

    Args:
        x_gates: [T, 3H], the inputs times weight_ih, plus bias_ih, in the order r, z, n; float32, bfloat16 or float16
            (computed in float32), or float64 on the CPU. Decides the type of the computation; autocast on a GPU casts
            it to its type.
        weight_hh: [3H, H], of any floating type: rounded to that of ``x_gates`` as the operand of its product.
        offsets: int32 [B + 1], where each sequence starts; from 0 to T.
        bias_hh: [3H] or None.
        max_len: at least the length of the longest sequence, known without looking at ``offsets``.

    Returns:
        h, [T, H] in the dtype of ``x_gates``: the state after every event. Differentiable in x_gates, weight_hh and
        bias_hh.

    Raises:
        ValueError: if a shape or type is not as above; on the CPU, or with FASTSEQ_CHECK=1, also if ``offsets`` is
            malformed or a sequence is longer than ``max_len``.

    Source: Cho et al., EMNLP 2014, with the reset gate after the product as in cuDNN and torch.nn.GRU.
    """
    check_gru(x_gates, weight_hh, offsets, bias_hh)
    h: Tensor = _gru(x_gates, weight_hh, offsets, bias_hh, max_len)[0]
    return h


def check_gru(x_gates: Tensor, weight_hh: Tensor, offsets: Tensor, bias_hh: Tensor | None) -> None:
    """Raises ValueError unless the arguments of ``gru`` fit together."""
    _checks.floating(x_gates=x_gates, weight_hh=weight_hh, bias_hh=bias_hh)
    if weight_hh.dim() != 2 or weight_hh.shape[0] != 3 * weight_hh.shape[1]:
        raise ValueError(f"weight_hh has shape {list(weight_hh.shape)}, expected [3H, H]")
    if x_gates.dim() != 2 or x_gates.shape[1] != weight_hh.shape[0]:
        expected = f"[T, {weight_hh.shape[0]}] to fit weight_hh {list(weight_hh.shape)}"
        raise ValueError(f"x_gates has shape {list(x_gates.shape)}, expected {expected}")
    if bias_hh is not None and bias_hh.shape != weight_hh.shape[:1]:
        raise ValueError(f"bias_hh has shape {list(bias_hh.shape)}, expected [{weight_hh.shape[0]}]")
    if offsets.dim() != 1 or offsets.dtype != torch.int32 or offsets.shape[0] < 1:
        raise ValueError(f"offsets is {offsets.dtype} {list(offsets.shape)}, expected torch.int32 [B + 1]")


def check_gru_data(x_gates: Tensor, weight_hh: Tensor, offsets: Tensor, bias_hh: Tensor | None, max_len: int) -> None:
    """Raises ValueError for ``offsets`` that do not cover the rows, or a sequence longer than ``max_len``."""
    _checks.offsets_of_rows(offsets, x_gates.shape[0], max_len)


def _fake(x_gates: Tensor, weight_hh: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows, hidden = x_gates.shape[0], weight_hh.shape[1]
    return x_gates.new_empty(rows, hidden), x_gates.new_empty(rows, 4 * hidden)


# saved [T, 4H] = (r, z, n, a_n), so that the backward pass computes no gate again; x_gates is there for the
# reference, which differentiates its own forward pass. grad_bias is empty without a bias.
_gru = register("gru", fake=_fake, differentiable=(0, 1, 3), with_output=True, check=check_gru_data, autocast=(0,))
