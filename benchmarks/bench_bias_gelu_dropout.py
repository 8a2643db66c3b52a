"""bias_gelu_dropout on the CPU beside its parts in PyTorch.

pytest benchmarks/bench_bias_gelu_dropout.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import DIRECTIONS, DTYPES, EVENTS, IMPLEMENTATIONS, RNG, measure
from torch import Tensor

from fastseq.ops import bias_gelu_dropout

INNER = 512


def fastseq(p: float, x: Tensor, bias: Tensor) -> Tensor:
    return bias_gelu_dropout(x, bias, dropout_p=p, rng=RNG)


def eager(p: float, x: Tensor, bias: Tensor) -> Tensor:
    return F.dropout(F.gelu(x + bias), p)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_gelu_dropout(benchmark: Any, dtype: str, direction: str, implementation: str) -> None:
    x, upstream = torch.randn(2, EVENTS, INNER)
    measure(
        benchmark, implementation, {"fastseq": fastseq, "eager": eager}, [x, torch.randn(INNER)], upstream,
        op="bias_gelu_dropout", shape=f"[{EVENTS}, {INNER}]", direction=direction, dtype=dtype, dropout_p=0.3,
    )  # fmt: skip
