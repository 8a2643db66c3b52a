"""dropout_add_norm on the CPU beside its parts in PyTorch: benchmarks/ops/dropout_add_norm.py.

pytest benchmarks/bench_dropout_add_norm.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.dropout_add_norm import case

from .op_bench import CPU, DIRECTIONS, DTYPES, IMPLEMENTATIONS, measure


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_add_norm(benchmark: Any, dtype: str, direction: str, implementation: str) -> None:
    measure(benchmark, implementation, case(CPU), direction=direction, dtype=dtype)
