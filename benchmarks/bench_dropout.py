"""dropout on the CPU beside torch.nn.functional.dropout, on what Caser's convolutions give.

pytest benchmarks/bench_dropout.py --benchmark-only

Training only: in evaluation the op returns its argument.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import BOTH, DTYPES, EVENTS, IMPLEMENTATIONS, RNG, measure
from torch import Tensor

from fastseq.ops import dropout


def fastseq(p: float, x: Tensor) -> Tensor:
    return dropout(x, p, RNG)


def eager(p: float, x: Tensor) -> Tensor:
    return F.dropout(x, p)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [20, 50])
def test_dropout(benchmark: Any, length: int, dtype: str, implementation: str) -> None:
    width = 4 * 64 + 8 * length  # n_v d + n_h L
    x, upstream = torch.randn(2, EVENTS, width)
    measure(
        benchmark, implementation, {"fastseq": fastseq, "eager": eager}, [x], upstream,
        op="dropout", shape=f"[{EVENTS}, {width}]", direction=BOTH, dtype=dtype, dropout_p=0.5,
    )  # fmt: skip
