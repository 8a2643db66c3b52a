"""dropout_add_norm on the CPU beside its parts in PyTorch, forward and backward.

pytest benchmarks/bench_dropout_add_norm.py --benchmark-only --benchmark-group-by=group
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import IMPLEMENTATIONS, RNG, measure
from torch import Tensor

from fastseq.ops import dropout_add_norm


def fastseq(p: float, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor) -> Tensor:
    return dropout_add_norm(x, residual, weight, bias, x_bias=x_bias, dropout_p=p, rng=RNG)


def eager(p: float, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor) -> Tensor:
    return F.layer_norm(residual + F.dropout(x + x_bias, p), weight.shape, weight, bias)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("width", [64, 256])
def test_dropout_add_norm(benchmark: Any, width: int, implementation: str) -> None:
    x, residual, upstream = torch.randn(3, 8192, width)
    weight, bias, x_bias = torch.randn(3, width)
    functions, leaves = {"fastseq": fastseq, "eager": eager}, [x, residual, weight, bias, x_bias]
    group = f"dropout_add_norm [8192, {width}]"
    measure(benchmark, implementation, functions, leaves, upstream, group=group, dropout_p=0.3)
