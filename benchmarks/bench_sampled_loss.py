"""sampled_loss on the CPU beside gathered rows in PyTorch: benchmarks/ops/sampled_loss.py.

pytest benchmarks/bench_sampled_loss.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.sampled_loss import SHAPES, case

from .op_bench import CPU, DIRECTIONS, IMPLEMENTATIONS, measure


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sampled_loss(benchmark: Any, shape: str, direction: str, implementation: str) -> None:
    measure(benchmark, implementation, case(CPU, shape), direction=direction)
