"""causal_attention and last_query_attention on the CPU beside what PyTorch offers: benchmarks/ops/attention.py.

pytest benchmarks/bench_attention.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.attention import SHAPES, causal, last_query

from .op_bench import CPU, DIRECTIONS, DTYPES, IMPLEMENTATIONS, measure


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "grouped"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_causal_attention(benchmark: Any, shape: str, dtype: str, direction: str, implementation: str) -> None:
    measure(benchmark, implementation, causal(CPU, shape), direction=direction, dtype=dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_last_query_attention(benchmark: Any, shape: str, direction: str, implementation: str) -> None:
    measure(benchmark, implementation, last_query(CPU, shape), direction=direction)
