"""bias_gelu_dropout on the CPU beside its parts in PyTorch: benchmarks/ops/bias_gelu_dropout.py.

pytest benchmarks/bench_bias_gelu_dropout.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.bias_gelu_dropout import case

from .op_bench import CPU, DIRECTIONS, DTYPES, IMPLEMENTATIONS, measure


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_gelu_dropout(benchmark: Any, dtype: str, direction: str, implementation: str) -> None:
    measure(benchmark, implementation, case(CPU), direction=direction, dtype=dtype)
