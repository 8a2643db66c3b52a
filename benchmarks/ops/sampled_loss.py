"""sampled_loss beside gathered rows in PyTorch (dense gradients of the item table on both sides)."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import gbce_beta, sampled_loss

from .case import BATCHES, BEAUTY_ITEMS, EVENTS, FLOAT32, LARGE_ITEMS, ML_1M_ITEMS, WIDTH, Case, Spec, dtypes_of

# loss, items, negatives of a row (or of the whole batch), whether shared
SHAPES = {
    "bpr, ml-1m, 1 negative": ("bpr", ML_1M_ITEMS, 1, False),
    "bpr, beauty, 1 negative": ("bpr", BEAUTY_ITEMS, 1, False),
    "bce, ml-1m, 1 negative": ("bce", ML_1M_ITEMS, 1, False),
    "gbce, ml-1m, 64 negatives": ("gbce", ML_1M_ITEMS, 64, False),
    "sampled_softmax, ml-1m, 64 negatives": ("sampled_softmax", ML_1M_ITEMS, 64, False),
    "bpr, beauty, 256 shared": ("bpr", BEAUTY_ITEMS, 256, True),
    "gbce, beauty, 256 shared": ("gbce", BEAUTY_ITEMS, 256, True),
    "sampled_softmax, beauty, 1024 shared": ("sampled_softmax", BEAUTY_ITEMS, 1024, True),
}
LARGE = {
    "bpr, V=1M, 1 negative": ("bpr", LARGE_ITEMS, 1, False),
    "sampled_softmax, V=1M, 1024 shared": ("sampled_softmax", LARGE_ITEMS, 1024, True),
}


def never_the_target(targets: Tensor, n_items: int, count: int) -> Tensor:
    moved = torch.randint(1, n_items, (len(targets), count), device=targets.device)
    return (targets[:, None] + moved) % n_items


def case(device: torch.device, shape: str, rows: int = EVENTS) -> Case:
    name = shape if rows == EVENTS else f"{shape}, {rows} targets"
    return sized(device, name, *(SHAPES | LARGE)[shape], rows)


def sized(
    device: torch.device, shape: str, loss: str, n_items: int, count: int, shared: bool, rows: int, width: int = WIDTH
) -> Case:
    targets = torch.randint(0, n_items, (rows,), device=device)
    negatives = (
        torch.randint(0, n_items, (count,), device=device) if shared else never_the_target(targets, n_items, count)
    )
    log_q = torch.full(negatives.shape, -math.log(n_items), device=device) if loss == "sampled_softmax" else None
    beta = gbce_beta(count, n_items, 0.75) if loss == "gbce" else 1.0

    def fastseq(p: float, h: Tensor, table: Tensor) -> Tensor:
        return sampled_loss(
            h, table, targets, negatives, loss=loss, log_q=log_q, beta=beta, reduction="none"
        )  # fmt: skip

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

    leaves = [torch.randn(rows, width, device=device), torch.randn(n_items + 1, width, device=device) / 4]
    gathered = min(rows + negatives.numel(), n_items) * width
    products = 2 * rows * (1 + count) * width
    return Case(
        "sampled_loss", shape, {"fastseq": fastseq, "eager": eager}, leaves, torch.rand(rows, device=device),
        products=shared, indices=8 * (rows + negatives.numel()), flops=(products, 2 * products),
        elements=(rows * width + gathered, 2 * rows * width + gathered + leaves[1].numel()),
    )  # fmt: skip


def suite(device: str) -> list[Spec]:
    if device == "cpu":
        return [Spec("sampled_loss", partial(case, shape=shape), [FLOAT32]) for shape in SHAPES]
    shapes = [(shape, rows) for rows in BATCHES for shape in SHAPES] + [(shape, EVENTS) for shape in LARGE]
    return [
        Spec("sampled_loss", partial(case, shape=shape, rows=rows), dtypes_of((SHAPES | LARGE)[shape][3]))
        for shape, rows in shapes
    ]


def tiny(device: torch.device) -> list[Case]:
    kinds = [(loss, shared) for loss in ("bpr", "bce", "gbce", "sampled_softmax") for shared in (False, True)]
    return [
        sized(device, f"{loss}, {'shared' if shared else 'own'}", loss, 9, 4, shared, 5, 16) for loss, shared in kinds
    ]
