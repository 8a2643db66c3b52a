"""Every op beside its rivals under pytest-benchmark: the cases of benchmarks/ops on the CPU and, with one, on a GPU.

    pytest benchmarks --benchmark-only -k "cpu and gru"

Complete and long (torch.compile for every shape); `python -m benchmarks.ops` measures the same within a budget.
No implementation is timed that has not passed its check. The rounds are those of ops/timing.py, as many as
--benchmark-max-time and --benchmark-min-rounds ask for: on a GPU the device's own times, the cache emptied before each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from .ops.case import OURS, Case
from .ops.check import Prepared, ReferenceOutOfMemoryError, Unavailable
from .ops.run import result_of
from .ops.suite import rivals, specs
from .ops.timing import clock_of

SPECS = {device: specs(device) for device in ("cpu", "cuda")}
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: PyTorch sees none")
ELAPSED = [0.0]  # seconds measured so far: the time of pytest-benchmark's timer


def parameters() -> Iterator[Any]:
    """The tests of a case follow each other, and both directions of an implementation."""
    for device, cases in SPECS.items():
        names = rivals(device)
        for index, spec in enumerate(cases):
            for dtype, name, direction in product(spec.dtypes, [OURS, *names[spec.op]], spec.directions):
                key = f"{device}-{spec.op}-{spec.words}-{dtype}-{name}-{direction}"
                yield pytest.param(device, index, dtype, name, direction, id=key, marks=[NO_GPU][: device == "cuda"])


@lru_cache(maxsize=1)  # the next case needs the memory
def built(device: str, index: int, dtype: str) -> tuple[Case, dict[float, list[Tensor]]]:
    """A case, and where the results of its reference are kept."""
    torch.manual_seed(0)
    return SPECS[device][index].build(torch.device(device)), {}


@lru_cache(maxsize=1)
def checked(device: str, index: int, dtype: str, implementation: str) -> Prepared:
    """An implementation that has passed its check."""
    case, expected = built(device, index, dtype)
    try:
        prepared = Prepared(case, implementation, dtype)
    except Unavailable as error:
        pytest.skip(f"{implementation}: {error}")
    prepared.check(expected)
    return prepared


def measure(benchmark: Any, prepared: Prepared, direction: str, device: torch.device, *limits: Any) -> None:
    result, times = result_of(prepared, direction, device, clock_of(device), *limits)
    benchmark.group = f"{result.op} {result.shape}, {result.dtype}, {device.type}, {direction}"
    benchmark.extra_info |= asdict(result)
    rounds = iter(times)

    def pass_by() -> None:
        ELAPSED[0] += next(rounds)

    benchmark.pedantic(pass_by, rounds=len(times))


@pytest.mark.benchmark(timer=lambda: ELAPSED[0])
@pytest.mark.parametrize(("device", "index", "dtype", "implementation", "direction"), list(parameters()))
def test_op(
    benchmark: Any, device: str, index: int, dtype: str, implementation: str, direction: str, request: Any
) -> None:
    limits = [request.config.getoption(f"benchmark_{name}") for name in ("max_time", "min_rounds")]
    try:
        measure(benchmark, checked(device, index, dtype, implementation), direction, torch.device(device), *limits)
    except torch.OutOfMemoryError as error:
        if implementation == OURS and not isinstance(error, ReferenceOutOfMemoryError):
            raise
        pytest.skip(f"{implementation}: out of memory, or the reference that it is checked against")
