"""dropout_add_norm on the CPU beside its parts in PyTorch.

pytest benchmarks/bench_dropout_add_norm.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import DIRECTIONS, DTYPES, EVENTS, IMPLEMENTATIONS, RNG, WIDTH, measure
from torch import Tensor

from fastseq.ops import dropout_add_norm


def fastseq(p: float, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor) -> Tensor:
    return dropout_add_norm(x, residual, weight, bias, x_bias=x_bias, dropout_p=p, rng=RNG)


def eager(p: float, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor) -> Tensor:
    return F.layer_norm(residual + F.dropout(x + x_bias, p), weight.shape, weight, bias)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_add_norm(benchmark: Any, dtype: str, direction: str, implementation: str) -> None:
    x, residual, upstream = torch.randn(3, EVENTS, WIDTH)
    measure(
        benchmark, implementation, {"fastseq": fastseq, "eager": eager}, [x, residual, *torch.randn(3, WIDTH)],
        upstream, op="dropout_add_norm", shape=f"[{EVENTS}, {WIDTH}]", direction=direction, dtype=dtype, dropout_p=0.3,
    )  # fmt: skip
