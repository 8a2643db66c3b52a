"""linear on the CPU beside torch.nn.functional.linear: benchmarks/ops/linear.py.

pytest benchmarks/bench_linear.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.linear import SHAPES, case

from .op_bench import CPU, DIRECTIONS, IMPLEMENTATIONS, PRECISIONS, measure


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_linear(benchmark: Any, shape: str, dtype: str, direction: str, implementation: str) -> None:
    measure(benchmark, implementation, case(CPU, *SHAPES[shape]), direction=direction, dtype=dtype)
