"""linear on the CPU beside torch.nn.functional.linear, for the products of a SASRec layer.

pytest benchmarks/bench_linear.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import DIRECTIONS, EVENTS, IMPLEMENTATIONS, PRECISIONS, measure
from torch import Tensor

from fastseq.ops import linear

SHAPES = {"query, key, value": (128, 384), "feed-forward in": (128, 512), "feed-forward out": (512, 128)}


def fastseq(p: float, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return linear(x, weight, bias)


def eager(p: float, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_linear(benchmark: Any, shape: str, dtype: str, direction: str, implementation: str) -> None:
    width, out = SHAPES[shape]
    leaves = [torch.randn(EVENTS, width), torch.randn(out, width) / width**0.5, torch.randn(out)]
    measure(
        benchmark, implementation, {"fastseq": fastseq, "eager": eager}, leaves, torch.randn(EVENTS, out),
        op="linear", shape=f"[{EVENTS}, {width}] x [{out}, {width}]", direction=direction, dtype=dtype,
    )  # fmt: skip
