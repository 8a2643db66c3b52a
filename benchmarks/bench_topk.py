"""topk on the CPU beside what PyTorch offers: benchmarks/ops/topk.py.

pytest benchmarks/bench_topk.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.topk import SHAPES, case

from .op_bench import CPU, IMPLEMENTATIONS, measure


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_topk(benchmark: Any, shape: str, implementation: str) -> None:
    measure(benchmark, implementation, case(CPU, shape))
