"""gru on the CPU beside torch.nn.GRU on a packed batch: benchmarks/ops/gru.py.

pytest benchmarks/bench_gru.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.gru import case

from .op_bench import CPU, DIRECTIONS, IMPLEMENTATIONS, measure


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gru(benchmark: Any, direction: str, implementation: str) -> None:
    measure(benchmark, implementation, case(CPU), direction=direction)
