"""A layer of a transformer encoder over jagged sequences, as one node of autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register
from .gru_sampled_loss import check_rows
from .philox import check_dropout


def transformer_layer(
    x: Tensor,
    offsets: Tensor,
    rows: Tensor | None,
    *,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    heads: int,
    max_len: int,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    rng: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """Causal self-attention and a feed-forward block with exact GELU, each with dropout, a residual sum and, after it,
    layer normalisation: nn.TransformerEncoderLayer as SASRec has it, in the parts that this module composes::

        a = causal_attention(q, k, v)                            q, k, v = x in_weightᵀ + in_bias, site
        y = dropout_add_norm(a out_weightᵀ, x, x_bias=out_bias)  site + 1; past a for ``rows`` alone
        z = bias_gelu_dropout(y weight1ᵀ, bias1)                 site + 2
        dropout_add_norm(z weight2ᵀ, y, x_bias=bias2)            site + 3

    Args:
        x: [T, d], float32, bfloat16 or float16, or float64 on the CPU; the weights have the same type. Autocast on a
            GPU casts x and the operands of products, that is in_weight, in_bias, out_weight, weight1 and weight2.
        offsets: int32 [B + 1], as of causal_attention.
        rows: int64 [N], ascending: the rows whose output counts; None for all T. Where a row is repeated, only the
            first of its outputs may have a gradient that is not zero.
        in_weight, in_bias: [3d, d] and [3d], of queries, keys and values.
        out_weight, out_bias: [d, d] and [d].
        weight1, bias1, weight2, bias2: [f, d], [f], [d, f] and [d].
        norm1_weight, norm1_bias, norm2_weight, norm2_bias: [d].
        heads: divides d.
        max_len: at least the length of the longest sequence.
        eps, dropout_p, rng: of all parts. site: the first of four.

    Returns:
        [N, d] in the type of ``x``. Gradients reach x and all weights.

    Raises:
        ValueError: if a shape, type, probability or site is not as above; on the CPU, or with FASTSEQ_CHECK=1, also if
            ``offsets`` is malformed or ``rows`` descend.
        IndexError: there, for a row that is none of x; on a GPU without it such a row's output is NaN.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
    """
    check_dropout(dropout_p, rng, site)
    check_dropout(dropout_p, rng, site + 3)
    _checks.number("eps", eps, least=0)
    if x.dim() != 2:
        raise ValueError(f"x is {list(x.shape)}, expected [T, d]")
    if offsets.dtype != torch.int32 or offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ValueError(f"offsets is {offsets.dtype} {list(offsets.shape)}, expected torch.int32 [B + 1]")
    if rows is not None and (rows.dim() != 1 or rows.dtype != torch.int64):
        raise ValueError(f"rows is {rows.dtype} {list(rows.shape)}, expected torch.int64 [N]")
    d, inner = x.shape[1], bias1.shape[0] if bias1.dim() else 0
    if not 1 <= heads <= 0xFFFF or d < heads or d % heads:
        raise ValueError(f"heads is {heads}, expected a divisor of {d}, the width of x, up to {0xFFFF}")
    weights = {
        "in_weight": (in_weight, [3 * d, d]),
        "in_bias": (in_bias, [3 * d]),
        "out_weight": (out_weight, [d, d]),
        "out_bias": (out_bias, [d]),
        "norm1_weight": (norm1_weight, [d]),
        "norm1_bias": (norm1_bias, [d]),
        "weight1": (weight1, [inner, d]),
        "bias1": (bias1, [inner]),
        "weight2": (weight2, [d, inner]),
        "bias2": (bias2, [d]),
        "norm2_weight": (norm2_weight, [d]),
        "norm2_bias": (norm2_bias, [d]),
    }
    for name, (weight, shape) in weights.items():
        if list(weight.shape) != shape:
            raise ValueError(f"{name} is {list(weight.shape)}, expected {shape}")
    tensors = [weight for weight, _ in weights.values()]
    _checks.one_type(x=x, **dict(zip(weights, tensors, strict=True)))
    return _transformer_layer(x, offsets, rows, *tensors, heads, max_len, eps, dropout_p, rng, site)[0]


def _check_data(x: Tensor, offsets: Tensor, rows: Tensor | None, *arguments: Any) -> None:
    _checks.offsets_of_rows(offsets, x.shape[0], arguments[13])
    check_rows(rows, x.shape[0])
    if rows is not None and (falls := (rows.diff() < 0).nonzero()).shape[0]:
        i = int(falls[0]) + 1
        raise ValueError(f"rows[{i}] is {int(rows[i])}, after {int(rows[i - 1])}: expected them to ascend; sort them")


def _fake(x: Tensor, offsets: Tensor, rows: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    (size, width), inner, heads = x.shape, arguments[7].shape[0], arguments[12]
    counted = size if rows is None else rows.shape[0]
    wide = torch.promote_types(x.dtype, torch.float32)

    def made(*shape: int) -> Tensor:
        return x.new_empty(shape)

    def stats() -> tuple[Tensor, Tensor]:
        return x.new_empty(counted, dtype=wide), x.new_empty(counted, dtype=wide)

    chosen = 0 if rows is None else counted
    return (
        made(counted, width),
        made(size, 3, heads, width // heads),
        made(size, heads, width // heads),
        x.new_empty(size, heads, dtype=wide),
        made(chosen, width),
        made(chosen, width),
        made(counted, width),
        *stats(),
        made(counted, width),
        made(counted, inner),
        made(counted, inner),
        made(counted, width),
        *stats(),
    )


# Beside the output: q, k and v [T, 3, H, D]; attention's output and log-sum-exp; its rows and those of x (empty without
# rows); their projection; mean and 1 / sqrt(variance + eps) of the first normalisation, and its output; what goes into
# and comes out of GELU; the second projection; mean and 1 / sqrt(variance + eps) of the second normalisation.
_transformer_layer = register(
    "transformer_layer",
    fake=_fake,
    differentiable=(0, *range(3, 15)),
    check=_check_data,
    autocast=(0, 3, 4, 5, 9, 11),  # x and the weights of products, and the bias that PyTorch adds to one
)
