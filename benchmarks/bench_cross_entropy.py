"""linear_cross_entropy on the CPU beside logits and cross_entropy in PyTorch.

pytest benchmarks/bench_cross_entropy.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import BEAUTY_ITEMS, DIRECTIONS, EVENTS, IMPLEMENTATIONS, ML_1M_ITEMS, PRECISIONS, WIDTH, measure
from torch import Tensor

from fastseq.ops import linear_cross_entropy

CLASSES = {"ml-1m": ML_1M_ITEMS + 1, "beauty": BEAUTY_ITEMS + 1}  # with the padding row


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("data", CLASSES)
def test_linear_cross_entropy(benchmark: Any, data: str, dtype: str, direction: str, implementation: str) -> None:
    classes = CLASSES[data]
    targets = torch.randint(0, classes, (EVENTS,))

    def fastseq(p: float, h: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(h, weight, targets)

    def eager(p: float, h: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, weight), targets)

    leaves = [torch.randn(EVENTS, WIDTH), 0.2 * torch.randn(classes, WIDTH)]
    measure(
        benchmark, implementation, {"fastseq": fastseq, "eager": eager}, leaves, torch.tensor(1.0),
        op="linear_cross_entropy", shape=f"{data} [{EVENTS}, {classes}]", direction=direction, dtype=dtype,
    )  # fmt: skip
