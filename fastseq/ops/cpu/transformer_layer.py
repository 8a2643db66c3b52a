"""A transformer layer on the CPU: its parts, one after the other."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .attention import causal_attention, causal_attention_backward
from .bias_gelu_dropout import bias_gelu_dropout, bias_gelu_dropout_backward
from .dropout_add_norm import dropout_add_norm, dropout_add_norm_backward
from .linear import linear, linear_backward


def transformer_layer(x: Tensor, offsets: Tensor, rows: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    in_weight, in_bias, out_weight, out_bias, norm1, shift1, weight1, bias1, weight2, bias2 = arguments[:10]
    norm2, shift2 = arguments[10:12]
    heads, max_len, eps, p, rng, site = arguments[12:]
    if rows is not None and (rows.diff() < 0).any():
        raise ValueError("rows descend")
    size, width = x.shape
    packed = linear(x, in_weight, in_bias, False).view(size, 3, heads, width // heads)
    scale = 1.0 / math.sqrt(width // heads)
    mixed, lse = causal_attention(*packed.unbind(1), offsets, max_len, p, rng, site, scale)
    counted, residual = x.new_empty(0, width), x.new_empty(0, width)
    ours, other = mixed.view(size, width), x
    if rows is not None:
        ours, other = counted, residual = ours.index_select(0, rows), x.index_select(0, rows)
    projected = linear(ours, out_weight, None, False)
    y1, *stats1 = dropout_add_norm(projected, other, norm1, shift1, out_bias, eps, p, rng, site + 1)
    hidden = linear(y1, weight1, None, False)
    inner = bias_gelu_dropout(hidden, bias1, p, rng, site + 2)
    outer = linear(inner, weight2, None, False)
    y, *stats2 = dropout_add_norm(outer, y1, norm2, shift2, bias2, eps, p, rng, site + 3)
    return y, packed, mixed, lse, counted, residual, projected, *stats1, y1, hidden, inner, outer, *stats2


def transformer_layer_backward(grad: Tensor, x: Tensor, offsets: Tensor, rows: Tensor | None, *arguments: Any) -> Any:
    in_weight, in_bias, out_weight, out_bias, norm1, shift1, weight1, bias1, weight2, bias2 = arguments[:10]
    norm2, shift2 = arguments[10:12]
    heads, max_len, eps, p, rng, site, packed, mixed, lse, counted, residual, projected = arguments[12:24]
    mean1, rstd1, y1, hidden, inner, outer, mean2, rstd2 = arguments[24:]
    size, width = x.shape
    saved = eps, p, rng, site + 3, mean2, rstd2
    d_outer, d_y1, d_norm2, d_shift2, d_bias2 = dropout_add_norm_backward(grad, outer, y1, norm2, shift2, bias2, *saved)
    d_inner, d_weight2, _ = linear_backward(d_outer, inner, weight2, None, False)
    d_hidden, d_bias1 = bias_gelu_dropout_backward(d_inner, hidden, bias1, p, rng, site + 2)
    d_more, d_weight1, _ = linear_backward(d_hidden, y1, weight1, None, False)
    ours, other = (mixed.view(size, width), x) if rows is None else (counted, residual)
    d_projected, d_x, d_norm1, d_shift1, d_out_bias = dropout_add_norm_backward(
        d_y1 + d_more, projected, other, norm1, shift1, out_bias, eps, p, rng, site + 1, mean1, rstd1
    )
    d_mixed, d_out_weight, _ = linear_backward(d_projected, ours, out_weight, None, False)
    if rows is not None:
        d_mixed, d_x = (torch.zeros_like(x).index_add_(0, rows, part) for part in (d_mixed, d_x))
    settings = offsets, max_len, p, rng, site, 1.0 / math.sqrt(width // heads), mixed, lse
    parts = causal_attention_backward(d_mixed.view(mixed.shape), *packed.unbind(1), *settings)
    d_more, d_in_weight, d_in_bias = linear_backward(
        torch.stack(parts, 1).view(size, 3 * width), x, in_weight, in_bias, False
    )
    return (
        d_x + d_more, d_in_weight, d_in_bias, d_out_weight, d_out_bias, d_norm1, d_shift1, d_weight1, d_bias1,
        d_weight2, d_bias2, d_norm2, d_shift2,
    )  # fmt: skip
