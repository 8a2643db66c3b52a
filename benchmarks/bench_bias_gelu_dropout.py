"""bias_gelu_dropout on the CPU beside its parts in PyTorch, forward and backward.

pytest benchmarks/bench_bias_gelu_dropout.py --benchmark-only --benchmark-group-by=group
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import IMPLEMENTATIONS, RNG, measure
from torch import Tensor

from fastseq.ops import bias_gelu_dropout


def fastseq(p: float, x: Tensor, bias: Tensor) -> Tensor:
    return bias_gelu_dropout(x, bias, dropout_p=p, rng=RNG)


def eager(p: float, x: Tensor, bias: Tensor) -> Tensor:
    return F.dropout(F.gelu(x + bias), p)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("width", [256, 1024])
def test_bias_gelu_dropout(benchmark: Any, width: int, implementation: str) -> None:
    x, upstream = torch.randn(2, 4096, width)
    functions, group = {"fastseq": fastseq, "eager": eager}, f"bias_gelu_dropout [4096, {width}]"
    measure(benchmark, implementation, functions, [x, torch.randn(width)], upstream, group=group, dropout_p=0.3)
