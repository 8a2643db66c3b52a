"""sampled_loss on the CPU beside gathered rows in PyTorch (dense gradients of the item table on both sides).

pytest benchmarks/bench_sampled_loss.py --benchmark-only
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import BEAUTY_ITEMS, DIRECTIONS, EVENTS, IMPLEMENTATIONS, ML_1M_ITEMS, WIDTH, measure
from torch import Tensor

from fastseq.ops import gbce_beta, sampled_loss

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


def never_the_target(targets: Tensor, n_items: int, count: int) -> Tensor:
    return (targets[:, None] + torch.randint(1, n_items, (len(targets), count))) % n_items


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sampled_loss(benchmark: Any, shape: str, direction: str, implementation: str) -> None:
    loss, n_items, count, shared = SHAPES[shape]
    targets = torch.randint(0, n_items, (EVENTS,))
    negatives = torch.randint(0, n_items, (count,)) if shared else never_the_target(targets, n_items, count)
    log_q = torch.full(negatives.shape, -math.log(n_items)) if loss == "sampled_softmax" else None
    beta = gbce_beta(count, n_items, 0.75) if loss == "gbce" else 1.0

    def fastseq(p: float, h: Tensor, table: Tensor) -> Tensor:
        return sampled_loss(
            h, table, targets, negatives, loss=loss, log_q=log_q, beta=beta, reduction="none"
        )  # fmt: skip

    def eager(p: float, h: Tensor, table: Tensor) -> Tensor:
        positive, rows = (h * F.embedding(targets, table)).sum(1, keepdim=True), F.embedding(negatives, table)
        if shared:
            scores = h @ rows.t()
        elif count == 1:  # each the faster of the two for its count
            scores = (h[:, None] * rows).sum(2)
        else:
            scores = (rows @ h[:, :, None]).squeeze(2)
        # Only shared negatives can hit a row's target: the others are drawn without.
        kept = (negatives != targets[:, None]).to(h.dtype) if shared else torch.ones(1, count)
        left = kept.sum(1, keepdim=True)
        if loss == "bpr":
            return (kept * F.softplus(scores - positive)).sum(1) / left.squeeze(1)
        if loss == "sampled_softmax":
            scores = scores + math.log(n_items) - left.log()
            logits = torch.cat((positive, scores.masked_fill(kept == 0, -torch.inf)), dim=1)
            return logits.logsumexp(1) - positive.squeeze(1)
        terms = beta * F.softplus(-positive) + (kept * F.softplus(scores)).sum(1, keepdim=True)
        return (terms / (left + 1)).squeeze(1)

    leaves = [torch.randn(EVENTS, WIDTH), torch.randn(n_items + 1, WIDTH) / 4]
    measure(
        benchmark, implementation, {"fastseq": fastseq, "eager": eager}, leaves, torch.rand(EVENTS),
        op="sampled_loss", shape=shape, direction=direction,
    )  # fmt: skip
