"""Embedding of a jagged batch on the CPU: csrc/embed_sequence.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import call, compute_type, matrix, optional, prepared, seed_and_step


def _positions(items: Tensor, offsets: Tensor, item_weight: Tensor, position_weight: Tensor | None) -> Tensor:
    positions = torch.empty(items.shape[0], dtype=torch.int32)
    longest = -1 if position_weight is None else position_weight.shape[0]
    _C.sequence_positions(items.numpy(), offsets.numpy(), item_weight.shape[0], longest, positions.numpy())
    return positions


def embed_sequence(
    items: Tensor, offsets: Tensor, item_weight: Tensor, position_weight: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float, p: float, rng: Tensor | None,
    site: int, padding_idx: int, bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    kind = compute_type(item_weight.dtype)
    items, offsets = items.contiguous(), offsets.contiguous()
    y = torch.empty(items.shape[0], item_weight.shape[1], dtype=kind)
    mean = torch.empty(0 if norm_weight is None else items.shape[0], dtype=kind)
    rstd = torch.empty_like(mean)
    call(
        _C.embed_sequence, items, _positions(items, offsets, item_weight, position_weight), matrix(item_weight, kind),
        optional(position_weight, kind), optional(norm_weight, kind), optional(norm_bias, kind), y,
        *((None, None) if norm_weight is None else (mean, rstd)), eps, p, *seed_and_step(rng), site,
    )  # fmt: skip
    return y.to(torch.bfloat16 if bfloat16 else item_weight.dtype), mean, rstd


def embed_sequence_backward(
    grad: Tensor, items: Tensor, offsets: Tensor, item_weight: Tensor, position_weight: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float, p: float, rng: Tensor | None, site: int,
    padding_idx: int, bfloat16: bool, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    kind = compute_type(item_weight.dtype)
    items, offsets, upstream = items.contiguous(), offsets.contiguous(), matrix(grad, kind)
    positions = _positions(items, offsets, item_weight, position_weight)
    drawn = (p, *seed_and_step(rng), site)
    dnorm_weight, dnorm_bias, dposition = (torch.empty(0, dtype=item_weight.dtype) for _ in range(3))
    if norm_weight is not None:
        w = prepared(norm_weight, kind)
        rows, dweight, dbias = torch.empty_like(upstream), torch.empty_like(w), torch.empty_like(w)
        call(
            _C.embed_sequence_norm_backward, upstream, items, positions, matrix(item_weight, kind),
            optional(position_weight, kind), w, prepared(mean, kind), prepared(rstd, kind), rows, dweight, dbias,
            *drawn,
        )  # fmt: skip
        dnorm_weight, dnorm_bias = dweight.to(norm_weight.dtype), dbias.to(norm_weight.dtype)
    elif p > 0.0:
        rows = torch.empty_like(upstream)
        call(_C.dropout, upstream, rows, *drawn)
    else:
        rows = upstream
    ditem = torch.zeros(item_weight.shape, dtype=kind)
    if position_weight is not None:
        dposition = torch.empty(position_weight.shape, dtype=kind)
    dposition_sums = None if position_weight is None else dposition
    call(_C.embed_sequence_scatter, rows, items, offsets, ditem, dposition_sums, padding_idx)
    return (
        ditem.to(item_weight.dtype),
        dposition if position_weight is None else dposition.to(position_weight.dtype),
        dnorm_weight,
        dnorm_bias,
    )
