"""Plain PyTorch twin of fastseq/ops/embed_sequence.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._autograd import vjp
from .dropout import dropout


def _embedded(
    items: Tensor, offsets: Tensor, item_weight: Tensor, position_weight: Tensor | None, padding_idx: int
) -> Tensor:
    wide = torch.promote_types(item_weight.dtype, torch.float32)
    embedded = F.embedding(items, item_weight.to(wide), None if padding_idx < 0 else padding_idx)
    if position_weight is None:
        return embedded
    starts = offsets[:-1].long().repeat_interleave(offsets.diff().long())
    return embedded + position_weight.to(wide)[torch.arange(len(items), device=items.device) - starts]


def _output(
    items: Tensor, offsets: Tensor, item_weight: Tensor, position_weight: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float, p: float, rng: Tensor | None,
    site: int, padding_idx: int, bfloat16: bool,
) -> Tensor:  # fmt: skip
    embedded = _embedded(items, offsets, item_weight, position_weight, padding_idx)
    if norm_weight is not None and norm_bias is not None:
        weight, bias = norm_weight.to(embedded.dtype), norm_bias.to(embedded.dtype)
        embedded = F.layer_norm(embedded, embedded.shape[-1:], weight, bias, eps)
    return dropout(embedded, p, rng, site).to(torch.bfloat16 if bfloat16 else item_weight.dtype)


def embed_sequence(
    items: Tensor, offsets: Tensor, item_weight: Tensor, position_weight: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float, p: float, rng: Tensor | None,
    site: int, padding_idx: int, bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    output = _output(
        items, offsets, item_weight, position_weight, norm_weight, norm_bias, eps, p, rng, site, padding_idx, bfloat16
    )
    embedded = _embedded(items, offsets, item_weight, position_weight, padding_idx)
    if norm_weight is None:
        return output, embedded.new_empty(0), embedded.new_empty(0)
    return output, embedded.mean(dim=-1), torch.rsqrt(embedded.var(dim=-1, correction=0) + eps)


def embed_sequence_backward(
    grad: Tensor, items: Tensor, offsets: Tensor, item_weight: Tensor, position_weight: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float, p: float, rng: Tensor | None, site: int,
    padding_idx: int, bfloat16: bool, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    arguments = (
        items, offsets, item_weight, position_weight, norm_weight, norm_bias, eps, p, rng, site, padding_idx, bfloat16
    )  # fmt: skip
    grads = vjp(_output, arguments, grad, wanted=(2, 3, 4, 5))
    ditem, dposition, dweight, dbias = (item_weight.new_empty(0) if g is None else g for g in grads)
    return ditem, dposition, dweight, dbias
