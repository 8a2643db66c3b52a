"""dropout on the CPU beside torch.nn.functional.dropout, forward and backward.

pytest benchmarks/bench_dropout.py --benchmark-only --benchmark-group-by=group
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import IMPLEMENTATIONS, RNG, measure
from torch import Tensor

from fastseq.ops import dropout


def fastseq(p: float, x: Tensor) -> Tensor:
    return dropout(x * 1, p, RNG)  # times 1: without dropout the op returns x itself


def eager(p: float, x: Tensor) -> Tensor:
    return F.dropout(x * 1, p)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("width", [64, 256])
def test_dropout(benchmark: Any, width: int, implementation: str) -> None:
    x, upstream = torch.randn(2, 8192, width)
    functions = {"fastseq": fastseq, "eager": eager}
    measure(benchmark, implementation, functions, [x], upstream, group=f"dropout [8192, {width}]", dropout_p=0.3)
