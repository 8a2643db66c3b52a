"""sample_negatives and sample_shared_negatives on the CPU beside rejection in PyTorch: benchmarks/ops/negatives.py.

pytest benchmarks/bench_negatives.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.negatives import per_target, shared

from .op_bench import CPU, IMPLEMENTATIONS, measure


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("k", [1, 2, 64])
def test_sample_negatives(benchmark: Any, k: int, implementation: str) -> None:
    measure(benchmark, implementation, per_target(CPU, k), dtype="int64")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_sample_shared_negatives(benchmark: Any, kind: str, implementation: str) -> None:
    measure(benchmark, implementation, shared(CPU, kind), dtype="int64")
