"""caser_windows on the CPU beside one nn.Conv2d per height: benchmarks/ops/caser_windows.py.

pytest benchmarks/bench_caser_windows.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.caser_windows import SHAPES, case

from .op_bench import CPU, DIRECTIONS, IMPLEMENTATIONS, measure


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("length", "kind"), SHAPES)
def test_caser_windows(benchmark: Any, length: int, kind: str, direction: str, implementation: str) -> None:
    measure(benchmark, implementation, case(CPU, length, kind), direction=direction)
