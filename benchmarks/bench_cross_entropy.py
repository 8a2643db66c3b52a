"""linear_cross_entropy on the CPU beside logits and cross_entropy in PyTorch, forward and backward.

pytest benchmarks/bench_cross_entropy.py --benchmark-only --benchmark-group-by=group
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import IMPLEMENTATIONS, measure
from torch import Tensor

from fastseq.ops import linear_cross_entropy

WIDTH = 64


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("rows", "classes"), [(2048, 3416), (512, 50_000)])
def test_linear_cross_entropy(benchmark: Any, rows: int, classes: int, implementation: str) -> None:
    targets = torch.randint(0, classes, (rows,))

    def fastseq(p: float, h: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(h, weight, targets, reduction="none")

    def eager(p: float, h: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, weight), targets, reduction="none")

    leaves = [torch.randn(rows, WIDTH), 0.3 * torch.randn(classes, WIDTH)]
    functions, group = {"fastseq": fastseq, "eager": eager}, f"linear_cross_entropy [{rows}, {classes}]"
    measure(benchmark, implementation, functions, leaves, torch.rand(rows), group=group)
