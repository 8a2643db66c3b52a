"""Plain PyTorch twin of fastseq/ops/sampled_loss.py."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastseq.ops.sampled_loss import IGNORED

from ._autograd import vjp


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) at any x; torch's own is cut off above 20, an error of 2e-9."""
    return -F.logsigmoid(-x)


def _table_rows(
    h: Tensor, item_weight: Tensor, targets: Tensor, negatives: Tensor, padding_idx: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """h [N, d] and the rows of the table for the targets [N, d] and the negatives [N, K, d], at least float32."""
    wide = torch.promote_types(h.dtype, torch.float32)
    item_weight = item_weight.to(wide)
    negative = F.embedding(negatives, item_weight, padding_idx)
    if negatives.dim() == 1:
        negative = negative.expand(h.shape[0], -1, -1)
    return h.to(wide), F.embedding(targets, item_weight, padding_idx), negative


def _without_ignored(targets: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows do not count [N, 1], and the ids with row 0 in their place."""
    ignored = (targets == IGNORED)[:, None]
    per_row = negatives.masked_fill(ignored, 0) if negatives.dim() == 2 else negatives
    return ignored, targets.masked_fill(ignored[:, 0], 0), per_row


def _losses(
    positive: Tensor, negative: Tensor, kept: Tensor, loss: str, log_q: Tensor | None, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of every row from its scores [N], [N, K], and its derivatives with respect to both."""
    count = kept.sum(1).to(positive.dtype)
    if loss == "bpr":
        difference = negative - positive[:, None]
        weight = kept / count.clamp(min=1)[:, None]
        d_negative = weight * torch.sigmoid(difference)
        return (weight * _softplus(difference)).sum(1), -d_negative.sum(1), d_negative
    if loss == "sampled_softmax":
        assert log_q is not None
        logits = negative - log_q.to(negative.dtype) - count.clamp(min=1).log()[:, None]
        logits = torch.cat((positive[:, None], torch.where(kept, logits, -torch.inf)), dim=1)
        probability = logits.softmax(1)
        return logits.logsumexp(1) - positive, probability[:, 0] - 1, probability[:, 1:]
    if loss not in ("bce", "gbce"):
        raise ValueError(f"loss {loss!r} has no reference")
    share = 1 / (count + 1)
    weight = share * (beta if loss == "gbce" else 1.0)
    terms = weight * _softplus(-positive) + share * (kept * _softplus(negative)).sum(1)
    return terms, -weight * torch.sigmoid(-positive), share[:, None] * kept * torch.sigmoid(negative)


def loss_rows(
    h: Tensor, item_weight: Tensor, targets: Tensor, negatives: Tensor, loss: str, log_q: Tensor | None, beta: float,
    padding_idx: int | None, scale: float,
) -> Tensor:  # fmt: skip
    """The loss of every row times ``scale``, [N]; differentiable."""
    ignored, targets, negatives = _without_ignored(targets, negatives)
    h, target, negative = _table_rows(h, item_weight, targets, negatives, padding_idx)
    scores = (h * target).sum(1), torch.einsum("nd,nkd->nk", h, negative)
    rows = _losses(*scores, negatives != targets[:, None], loss, log_q, beta)[0]
    return scale * rows.masked_fill(ignored[:, 0], 0)


def sampled_loss(
    h: Tensor, item_weight: Tensor, targets: Tensor, negatives: Tensor, loss: str, log_q: Tensor | None, beta: float,
    padding_idx: int | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    ignored, targets, negatives = _without_ignored(targets, negatives)
    h, target, negative = _table_rows(h, item_weight, targets, negatives, padding_idx)
    scores = (h * target).sum(1), torch.einsum("nd,nkd->nk", h, negative)
    rows, d_positive, d_negative = _losses(*scores, negatives != targets[:, None], loss, log_q, beta)
    d_h = d_positive[:, None] * target + torch.einsum("nk,nkd->nd", d_negative, negative)
    d_scores = torch.cat((d_positive[:, None], d_negative), dim=1)
    rows = rows.masked_fill(ignored[:, 0], 0)
    return scale * rows, scale * d_h.masked_fill(ignored, 0), scale * d_scores.masked_fill(ignored, 0)


def sampled_loss_backward(
    grad: Tensor, h: Tensor, item_weight: Tensor, targets: Tensor, negatives: Tensor, loss: str, log_q: Tensor | None,
    beta: float, padding_idx: int | None, scale: float, d_h: Tensor, d_scores: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    arguments = (h, item_weight, targets, negatives, loss, log_q, beta, padding_idx, scale)
    grad_h, grad_item = vjp(loss_rows, arguments, grad, (0, 1))
    return grad_h, grad_item
