"""sampled_loss beside gathered rows in PyTorch (dense gradients of the item table on both sides)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import gbce_beta, sampled_loss
from fastseq.ops.sampled_loss import LOSSES

from .case import BATCHES, EVENTS, HALF, ITEMS, PRODUCTS, WIDTH, Case, Cases

# loss, data, negatives of a row (or of the whole batch), whether shared
SHAPES = [
    ("bpr", "ml-1m", 1, False),
    ("bpr", "beauty", 1, False),
    ("bce", "ml-1m", 1, False),
    ("gbce", "ml-1m", 64, False),
    ("sampled_softmax", "ml-1m", 64, False),
    ("bpr", "beauty", 256, True),
    ("gbce", "beauty", 256, True),
    ("sampled_softmax", "beauty", 1024, True),
]
LARGE = [("bpr", "V=1M", 1, False), ("sampled_softmax", "V=1M", 1024, True)]


def never_the_target(targets: Tensor, n_items: int, count: int) -> Tensor:
    moved = torch.randint(1, n_items, (len(targets), count), device=targets.device)
    return (targets[:, None] + moved) % n_items


def case(
    device: torch.device, loss: str, data: str, count: int, shared: bool, rows: int = EVENTS,
    n_items: int = 0, width: int = WIDTH,
) -> Case:  # fmt: skip
    n_items = n_items or ITEMS[data]
    targets = torch.randint(0, n_items, (rows,), device=device)
    negatives = (
        torch.randint(0, n_items, (count,), device=device) if shared else never_the_target(targets, n_items, count)
    )
    log_q = torch.full(negatives.shape, -math.log(n_items), device=device) if loss == "sampled_softmax" else None
    beta = gbce_beta(count, n_items, 0.75) if loss == "gbce" else 1.0

    def fastseq(p: float, h: Tensor, table: Tensor) -> Tensor:
        return sampled_loss(h, table, targets, negatives, loss=loss, log_q=log_q, beta=beta, reduction="none")

    def eager(p: float, h: Tensor, table: Tensor) -> Tensor:
        positive, gathered = (h * F.embedding(targets, table)).sum(1, keepdim=True), F.embedding(negatives, table)
        if shared:
            scores = h @ gathered.t()
        elif count == 1:  # each the faster of the two for its count
            scores = (h[:, None] * gathered).sum(2)
        else:
            scores = (gathered @ h[:, :, None]).squeeze(2)
        # Only shared negatives can hit a row's target: the others are drawn without.
        kept = (negatives != targets[:, None]).to(h.dtype) if shared else torch.ones(1, count, device=h.device)
        left = kept.sum(1, keepdim=True)
        if loss == "bpr":
            return (kept * F.softplus(scores - positive)).sum(1) / left.squeeze(1)
        if loss == "sampled_softmax":
            scores = scores + math.log(n_items) - left.log()
            logits = torch.cat((positive, scores.masked_fill(kept == 0, -torch.inf)), dim=1)
            return logits.logsumexp(1) - positive.squeeze(1)
        terms = beta * F.softplus(-positive) + (kept * F.softplus(scores)).sum(1, keepdim=True)
        return (terms / (left + 1)).squeeze(1)

    shape = f"{loss}, {data}, {count} {'shared' if shared else 'negative' if count == 1 else 'negatives'}"
    h, table = torch.randn(rows, width, device=device), torch.randn(n_items + 1, width, device=device) / 4
    gathered = min(rows + negatives.numel(), n_items) * width
    products = 2 * rows * (1 + count) * width
    return Case(
        "sampled_loss", shape if rows == EVENTS else f"{shape}, {rows} targets", {"fastseq": fastseq, "eager": eager},
        [h, table], torch.rand(rows, device=device), products=shared, indices=8 * (rows + negatives.numel()),
        elements=(h.numel() + gathered, 2 * h.numel() + gathered + table.numel()), flops=(products, 2 * products),
    )  # fmt: skip


def cases(shared: bool) -> Cases:
    """Those with shared negatives, whose scores are a matrix product, or the others."""
    shapes, large = ([shape for shape in sizes if shape[3] == shared] for sizes in (SHAPES, LARGE))
    return Cases(
        "sampled_loss", case, "loss data count shared rows", cpu=[(*shape, EVENTS) for shape in shapes],
        cuda=[*((*shape, rows) for rows in BATCHES for shape in shapes), *((*shape, EVENTS) for shape in large)],
        tiny=[(loss, "tiny", 4, shared, 5, 9, 16) for loss in LOSSES], cuda_dtypes=PRODUCTS if shared else HALF,
    )  # fmt: skip


CASES = [cases(False), cases(True)]
