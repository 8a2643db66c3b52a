"""adam_rows on the CPU beside PyTorch's optimizers: benchmarks/ops/adam_rows.py.

pytest benchmarks/bench_adam_rows.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.adam_rows import SHAPES, case

from .op_bench import CPU, IMPLEMENTATIONS, measure


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("data", SHAPES)
def test_adam_rows(benchmark: Any, data: str, lazy: bool, implementation: str) -> None:
    measure(benchmark, implementation, case(CPU, data, lazy))
