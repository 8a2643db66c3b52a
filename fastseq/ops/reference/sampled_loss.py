"""Plain PyTorch twin of fastseq/ops/sampled_loss.py."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ._autograd import vjp


def _scores(h: Tensor, item_weight: Tensor, targets: Tensor, negatives: Tensor, padding_idx: int | None) -> Tensor:
    """[N, 1 + K], the target's first."""
    wide = torch.promote_types(h.dtype, torch.float32)
    h, item_weight = h.to(wide), item_weight.to(wide)
    positive = (h * F.embedding(targets, item_weight, padding_idx)).sum(1, keepdim=True)
    rows = F.embedding(negatives, item_weight, padding_idx)
    negative = h @ rows.t() if negatives.dim() == 1 else torch.einsum("nd,nkd->nk", h, rows)
    return torch.cat((positive, negative), dim=1)


def _rows(scores: Tensor, targets: Tensor, negatives: Tensor, loss: str, log_q: Tensor | None, beta: float) -> Tensor:
    """The loss of every row from its scores."""
    positive, negative = scores[:, 0], scores[:, 1:]
    kept = negatives != targets[:, None]
    count = kept.sum(1)
    if loss == "bpr":
        terms = torch.where(kept, F.softplus(negative - positive[:, None]), 0.0)
        return terms.sum(1) / count.clamp(min=1)
    if loss == "sampled_softmax":
        assert log_q is not None
        logits = negative - log_q.to(scores.dtype) - count.clamp(min=1).to(scores.dtype).log()[:, None]
        logits = torch.where(kept, logits, -torch.inf)
        return torch.cat((positive[:, None], logits), dim=1).logsumexp(1) - positive
    weight = beta if loss == "gbce" else 1.0
    terms = torch.where(kept, F.softplus(negative), 0.0)
    return (weight * F.softplus(-positive) + terms.sum(1)) / (count + 1)


def loss_rows(
    h: Tensor,
    item_weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    loss: str,
    log_q: Tensor | None,
    beta: float,
    padding_idx: int | None,
) -> Tensor:
    """The loss of every row, [N]; differentiable."""
    scores = _scores(h, item_weight, targets, negatives, padding_idx)
    return _rows(scores, targets, negatives, loss, log_q, beta)


def sampled_loss(
    h: Tensor,
    item_weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    loss: str,
    log_q: Tensor | None,
    beta: float,
    padding_idx: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (h, item_weight, targets, negatives, loss, log_q, beta, padding_idx)
    rows = loss_rows(*arguments)
    ones = torch.ones_like(rows)
    (d_h,) = vjp(loss_rows, (h.to(rows.dtype), *arguments[1:]), ones, (0,))
    scores = _scores(h, item_weight, targets, negatives, padding_idx)
    (d_scores,) = vjp(_rows, (scores, targets, negatives, loss, log_q, beta), ones, (0,))
    assert d_h is not None and d_scores is not None
    return rows, d_h, d_scores


def sampled_loss_backward(
    grad: Tensor,
    h: Tensor,
    item_weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    loss: str,
    log_q: Tensor | None,
    beta: float,
    padding_idx: int | None,
    d_h: Tensor,
    d_scores: Tensor,
) -> tuple[Tensor, Tensor]:
    arguments = (h, item_weight, targets, negatives, loss, log_q, beta, padding_idx)
    grad_h, grad_item = vjp(loss_rows, arguments, grad, (0, 1))
    assert grad_h is not None and grad_item is not None
    return grad_h, grad_item
