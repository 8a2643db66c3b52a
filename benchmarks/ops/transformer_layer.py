"""transformer_layer beside its parts in PyTorch, attention over the padded batch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import make_rng, transformer_layer

from .attention import NAMES, P
from .case import PRODUCTS, WIDTH, Batch, Case, Cases, batches

HEADS, INNER = 4, 512


def case(device: torch.device, batch: Batch, width: int = WIDTH, inner: int = INNER, heads: int = HEADS) -> Case:
    offsets, (rows, _), rng = batch.offsets(device), batch.padded(device), make_rng(1, 2, device)
    counted = torch.arange(0, batch.events, 2, device=device)  # as of windows that overlap
    order = batch.padded(torch.device("cpu"))[1].flatten().nonzero().squeeze(1).to(device)

    def fastseq(p: float, x: Tensor, *weights: Tensor) -> Tensor:
        names = ("in_weight", "in_bias", "out_weight", "out_bias", "weight1", "bias1", "weight2", "bias2")
        norms = ("norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias")
        layer: dict[str, Any] = dict(zip(names + norms, weights, strict=True))
        return transformer_layer(x, offsets, counted, **layer, heads=heads, max_len=batch.longest, dropout_p=p, rng=rng)

    def eager(p: float, x: Tensor, *weights: Tensor) -> Tensor:
        in_weight, in_bias, out_weight, out_bias, weight1, bias1, weight2, bias2, *norms = weights
        q, k, v = F.linear(x, in_weight, in_bias).view(-1, 3, heads, width // heads)[rows].permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p).transpose(1, 2)
        mixed, x = mixed.reshape(-1, width).index_select(0, order)[counted], x[counted]
        y = F.layer_norm(x + F.dropout(F.linear(mixed, out_weight, out_bias), p), (width,), norms[0], norms[1])
        z = F.linear(F.dropout(F.gelu(F.linear(y, weight1, bias1)), p), weight2, bias2)
        return F.layer_norm(y + F.dropout(z, p), (width,), norms[2], norms[3])

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, device=device) / math.sqrt(columns)

    def vector(size: int) -> Tensor:
        return torch.randn(size, device=device) / 8

    x, upstream = torch.randn(2, batch.events, width, device=device)
    upstream = upstream[: len(counted)]
    weights = [matrix(3 * width, width), vector(3 * width), matrix(width, width), vector(width)]
    weights += [matrix(inner, width), vector(inner), matrix(width, inner), vector(width)]
    weights += [1 + vector(width), vector(width), 1 + vector(width), vector(width)]
    pairs = sum(length * (length + 1) // 2 for length in batch.lengths)
    products = 2 * width * (batch.events * 3 * width + len(counted) * (width + 2 * inner))
    shape = f"{batch}, [{batch.events}, {width}], every other row"
    return Case(
        "transformer_layer", shape, {"fastseq": fastseq, "eager": eager}, [x, *weights], upstream, dropout_p=P,
        products=True, indices=offsets.nbytes,
        flops=(products + 4 * pairs * width, 2 * products + 10 * pairs * width),
    )  # fmt: skip


TINY = [(Batch("tiny", [5, 3, 1]), 16, 24, 2), (Batch("tiny, in blocks", [70, 2]), 16, 24, 2)]
CASES = [
    Cases(
        "transformer_layer", case, "batch", cpu=batches("cpu", *NAMES), cuda=batches("cuda", *NAMES),
        tiny=TINY, cuda_dtypes=PRODUCTS,
    )
]  # fmt: skip
