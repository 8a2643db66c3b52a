"""linear_cross_entropy on the CPU beside logits and cross_entropy: benchmarks/ops/cross_entropy.py.

pytest benchmarks/bench_cross_entropy.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.cross_entropy import case

from .op_bench import CPU, DIRECTIONS, IMPLEMENTATIONS, PRECISIONS, measure


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("data", ["ml-1m", "beauty"])
def test_linear_cross_entropy(benchmark: Any, data: str, dtype: str, direction: str, implementation: str) -> None:
    measure(benchmark, implementation, case(CPU, data), direction=direction, dtype=dtype)
