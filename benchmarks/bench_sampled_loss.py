"""sampled_loss on the CPU beside gathered rows in PyTorch, forward and backward (dense gradients on both sides).

pytest benchmarks/bench_sampled_loss.py --benchmark-only --benchmark-group-by=group
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import IMPLEMENTATIONS, measure
from torch import Tensor

from fastseq.ops import sampled_loss

ROWS, WIDTH = 4096, 64
SHAPES = {"1 negative": (3416, 1), "64 negatives": (3416, 64), "1 negative, 100k items": (100_000, 1)}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("loss", ["bpr", "bce"])
@pytest.mark.parametrize("shape", SHAPES)
def test_sampled_loss(benchmark: Any, shape: str, loss: str, implementation: str) -> None:
    n_items, count = SHAPES[shape]
    targets = torch.randint(0, n_items, (ROWS,))
    negatives = (targets[:, None] + torch.randint(1, n_items, (ROWS, count))) % n_items  # never the target

    def fastseq(p: float, h: Tensor, table: Tensor) -> Tensor:
        return sampled_loss(h, table, targets, negatives, loss=loss, reduction="none")

    def eager(p: float, h: Tensor, table: Tensor) -> Tensor:
        positive = (h * F.embedding(targets, table)).sum(1, keepdim=True)
        scores = torch.einsum("nd,nkd->nk", h, F.embedding(negatives, table))
        if loss == "bpr":
            return F.softplus(scores - positive).mean(1)
        return torch.cat((F.softplus(-positive), F.softplus(scores)), dim=1).mean(1)

    leaves = [torch.randn(ROWS, WIDTH), torch.randn(n_items + 1, WIDTH)]
    functions, group = {"fastseq": fastseq, "eager": eager}, f"sampled_loss {loss}, {shape}"
    measure(benchmark, implementation, functions, leaves, torch.rand(ROWS), group=group)
