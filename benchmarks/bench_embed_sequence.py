"""embed_sequence on the CPU beside its parts in PyTorch: benchmarks/ops/embed_sequence.py.

pytest benchmarks/bench_embed_sequence.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.ops.embed_sequence import SHAPES, case

from .op_bench import CPU, DIRECTIONS, IMPLEMENTATIONS, measure


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", list(SHAPES)[:3])
def test_embed_sequence(benchmark: Any, shape: str, direction: str, implementation: str) -> None:
    measure(benchmark, implementation, case(CPU, shape), direction=direction)
