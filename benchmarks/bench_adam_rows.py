"""adam_rows on the CPU beside PyTorch's optimizers: fastseq/bench_kernels/adam_rows.py.

pytest benchmarks/bench_adam_rows.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest
from op_bench import CPU, IMPLEMENTATIONS, measure

from fastseq.bench_kernels.adam_rows import SHAPES, case


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("data", SHAPES)
def test_adam_rows(benchmark: Any, data: str, lazy: bool, implementation: str) -> None:
    measure(benchmark, implementation, case(CPU, data, lazy))
