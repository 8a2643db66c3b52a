"""gru_sampled_loss on the CPU beside nn.GRU, a linear layer and the loss: benchmarks/ops/gru_sampled_loss.py.

pytest benchmarks/bench_gru_sampled_loss.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.gru_sampled_loss import case

from .op_bench import CPU, DIRECTIONS, IMPLEMENTATIONS, measure


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gru_sampled_loss(benchmark: Any, direction: str, implementation: str) -> None:
    measure(benchmark, implementation, case(CPU), direction=direction)
