"""dropout on the CPU beside torch.nn.functional.dropout, in training: benchmarks/ops/dropout.py.

pytest benchmarks/bench_dropout.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.dropout import case

from .op_bench import CPU, DIRECTIONS, DTYPES, IMPLEMENTATIONS, measure


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [20, 50])
def test_dropout(benchmark: Any, length: int, dtype: str, implementation: str) -> None:
    measure(benchmark, implementation, case(CPU, length), direction=DIRECTIONS[1], dtype=dtype)
