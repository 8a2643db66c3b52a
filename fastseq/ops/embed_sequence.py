"""Embedding of a jagged batch of sequences: item, position, layer normalisation and dropout in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._dispatch import bfloat16_activations, register
from .philox import check_dropout


def embed_sequence(
    items: Tensor,
    offsets: Tensor,
    item_weight: Tensor,
    position_weight: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    eps: float = 1e-8,
    dropout_p: float = 0.0,
    rng: Tensor | None = None,
    site: int = 0,
    padding_idx: int | None,
) -> Tensor:
    """``dropout(LayerNorm(item_weight[items] + position_weight[position]))`` for every event.

    Args:
        items: int64 [T], rows of ``item_weight``.
        offsets: int32 [B + 1], starts at 0 and ends at T; sequence b is ``items[offsets[b]:offsets[b + 1]]``.
        item_weight: [V + 1, d], float32, bfloat16 or float16 (computed in float32), or float64 on the CPU.
        position_weight: [L, d] or None; position 0 is the first event of a sequence, none is longer than L.
        norm_weight, norm_bias: [d] both, or None both: no normalisation.
        eps: added to the variance.
        dropout_p: probability, 0 <= dropout_p < 1.
        rng: int64 [2], (seed, step); needed where dropout_p > 0. Counter: fastseq/ops/philox.py.
        site: which dropout of the model this is, 0 ... 0x7fff.
        padding_idx: row of ``item_weight`` that is read like any other but gets no gradient (None: none such).

    Returns:
        [T, d] in the dtype of ``item_weight``; under autocast to bfloat16 on a GPU in bfloat16. The gradient of
        ``item_weight`` is dense and does not depend on the number of threads.

    Raises:
        ValueError: if shapes or dtypes disagree, ``eps``, ``dropout_p`` or ``site`` is out of range, or ``rng`` is
            missing or malformed; on the CPU, or with FASTSEQ_CHECK=1, also if an id is out of range, a sequence longer
            than L, or ``offsets`` malformed.

    Source: the embedding of SASRec (Kang and McAuley, ICDM 2018) with the normalisation of WarpRec and RecBole.
    """
    _checks.one_type(
        item_weight=item_weight, position_weight=position_weight, norm_weight=norm_weight, norm_bias=norm_bias
    )
    _checks.number("eps", eps, least=0)
    width = item_weight.shape[1:]
    if items.dtype != torch.int64 or items.dim() != 1:
        raise ValueError(f"items is {items.dtype} {list(items.shape)}, expected torch.int64 [T]")
    if offsets.dtype != torch.int32 or offsets.dim() != 1 or offsets.shape[0] < 1:
        raise ValueError(f"offsets is {offsets.dtype} {list(offsets.shape)}, expected torch.int32 [B + 1]")
    if item_weight.dim() != 2:
        raise ValueError(f"item_weight is {list(item_weight.shape)}, expected [V + 1, d]")
    if position_weight is not None and (position_weight.dim() != 2 or position_weight.shape[1:] != width):
        raise ValueError(f"position_weight is {list(position_weight.shape)}, expected [L, {width[0]}]")
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError("norm_weight and norm_bias: pass both or neither")
    for name, vector in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if vector is not None and vector.shape != width:
            raise ValueError(f"{name} is {list(vector.shape)}, expected {list(width)}")
    if padding_idx is not None and not 0 <= padding_idx < item_weight.shape[0]:
        raise ValueError(
            f"padding_idx is {padding_idx}, expected a row of item_weight, 0 ... {item_weight.shape[0] - 1}"
        )
    check_dropout(dropout_p, rng, site)
    padding = -1 if padding_idx is None else padding_idx
    output, _, _ = _embed_sequence(
        items, offsets, item_weight, position_weight, norm_weight, norm_bias, eps, dropout_p, rng, site, padding,
        bfloat16_activations(item_weight.device.type),
    )  # fmt: skip
    return output


def _check_data(items: Tensor, offsets: Tensor, item_weight: Tensor, position_weight: Tensor | None, *_: Any) -> None:
    n_items = item_weight.shape[0]
    _checks.offsets_of_rows(offsets, items.shape[0])
    _checks.in_range("items", items, n_items, f"0 <= id < {n_items}, the rows of item_weight")
    if position_weight is not None:
        longest = position_weight.shape[0]
        _checks.no_longer(offsets.diff(), longest, f"events, but position_weight has {longest} rows (offsets)")


def _fake(
    items: Tensor, offsets: Tensor, item_weight: Tensor, position_weight: Tensor | None, norm_weight: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    wide = torch.promote_types(item_weight.dtype, torch.float32)
    mean = item_weight.new_empty(0 if norm_weight is None else items.shape[0], dtype=wide)
    kind = torch.bfloat16 if settings[-1] else item_weight.dtype
    return item_weight.new_empty(items.shape[0], item_weight.shape[1], dtype=kind), mean, torch.empty_like(mean)


# The second and third output are the mean and 1 / sqrt(variance + eps) of every row in the compute type, empty
# without normalisation. The last argument of the op says whether the first one is bfloat16.
_embed_sequence = register("embed_sequence", fake=_fake, differentiable=(2, 3, 4, 5), check=_check_data)
