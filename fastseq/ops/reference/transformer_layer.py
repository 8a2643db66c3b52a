"""Plain PyTorch twin of fastseq/ops/transformer_layer.py: the references of its parts, one after the other."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ._autograd import vjp
from .attention import causal_attention
from .bias_gelu_dropout import bias_gelu_dropout
from .dropout_add_norm import dropout_add_norm
from .linear import linear


def transformer_layer(
    x: Tensor, offsets: Tensor, rows: Tensor | None, in_weight: Tensor, in_bias: Tensor, out_weight: Tensor,
    out_bias: Tensor, norm1_weight: Tensor, norm1_bias: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor,
    bias2: Tensor, norm2_weight: Tensor, norm2_bias: Tensor, heads: int, max_len: int, eps: float, p: float,
    rng: Tensor | None, site: int,
) -> tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
    Tensor,
]:  # fmt: skip
    size, width = x.shape
    packed = linear(x, in_weight, in_bias, False).view(size, 3, heads, width // heads)
    scale = 1.0 / math.sqrt(width // heads)
    q, k, v = packed.unbind(1)
    mixed, lse = causal_attention(q, k, v, offsets, max_len, p, rng, site, scale)
    counted, residual = x.new_empty(0, width), x.new_empty(0, width)
    ours, other = mixed.view(size, width), x
    if rows is not None:
        ours, other = counted, residual = ours.index_select(0, rows), x.index_select(0, rows)
    projected = linear(ours, out_weight, None, False)
    y1, mean1, rstd1 = dropout_add_norm(projected, other, norm1_weight, norm1_bias, out_bias, eps, p, rng, site + 1)
    hidden = linear(y1, weight1, None, False)
    inner = bias_gelu_dropout(hidden, bias1, p, rng, site + 2)
    outer = linear(inner, weight2, None, False)
    y, mean2, rstd2 = dropout_add_norm(outer, y1, norm2_weight, norm2_bias, bias2, eps, p, rng, site + 3)
    return (
        y, packed, mixed, lse, counted, residual, projected, mean1, rstd1, y1, hidden, inner, outer, mean2, rstd2,
    )  # fmt: skip


def transformer_layer_backward(
    grad: Tensor, x: Tensor, offsets: Tensor, rows: Tensor | None, in_weight: Tensor, in_bias: Tensor,
    out_weight: Tensor, out_bias: Tensor, norm1_weight: Tensor, norm1_bias: Tensor, weight1: Tensor, bias1: Tensor,
    weight2: Tensor, bias2: Tensor, norm2_weight: Tensor, norm2_bias: Tensor, heads: int, max_len: int, eps: float,
    p: float, rng: Tensor | None, site: int, packed: Tensor, mixed: Tensor, lse: Tensor, counted: Tensor,
    residual: Tensor, projected: Tensor, mean1: Tensor, rstd1: Tensor, y1: Tensor, hidden: Tensor, inner: Tensor,
    outer: Tensor, mean2: Tensor, rstd2: Tensor,
) -> tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
]:  # fmt: skip
    def output(*arguments: Any) -> Tensor:
        return transformer_layer(*arguments)[0]

    weights = (in_weight, in_bias, out_weight, out_bias, norm1_weight, norm1_bias, weight1, bias1, weight2, bias2)
    arguments = (x, offsets, rows, *weights, norm2_weight, norm2_bias, heads, max_len, eps, p, rng, site)
    return tuple(vjp(output, arguments, grad, (0, *range(3, 15))))
