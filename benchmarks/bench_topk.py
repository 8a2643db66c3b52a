"""topk on the CPU beside what PyTorch offers: fastseq/bench_kernels/topk.py.

pytest benchmarks/bench_topk.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest
from op_bench import CPU, IMPLEMENTATIONS, measure

from fastseq.bench_kernels.topk import SHAPES, case


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_topk(benchmark: Any, shape: str, implementation: str) -> None:
    measure(benchmark, implementation, case(CPU, shape))
