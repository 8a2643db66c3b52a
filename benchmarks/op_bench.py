"""What the benchmarks of single ops share: an implementation is correct before it is timed.

A bench file takes its cases from benchmarks/ops, where each has its functions by name:

    fastseq   the op
    eager     the best plain PyTorch for the same work; more of them under names of their own
    compiled  torch.compile of eager, made here and compiled before the clock starts

"forward" is evaluation (no gradients, no dropout), "forward + backward" a step of training with the seed's dropout.
Batches hold 2,048 events, the batch size of the seed configurations, with lengths as their data sets have them. On a
GPU (bench_cuda.py) the times are the device's own, from events, with the cache emptied before each round.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.ops.case import AUTOCAST, DIRECTIONS, FORWARD, Case
from benchmarks.ops.check import Prepared
from benchmarks.ops.run import result_of
from benchmarks.ops.timing import clock_of, peak_bytes, timed

CPU = torch.device("cpu")
IMPLEMENTATIONS = ["fastseq", "eager", "compiled"]
DTYPES = ["float32", "bfloat16"]
PRECISIONS = ["float32", AUTOCAST]
SECONDS = 0.3  # of rounds on a GPU, as conftest.py gives pytest-benchmark on the CPU
_correct: set[tuple[str, str]] = set()

__all__ = ["CPU", "DEVICE_TIME", "DIRECTIONS", "DTYPES", "IMPLEMENTATIONS", "PRECISIONS", "measure"]


class DeviceTime:
    """A timer for pytest-benchmark that stands still but for the seconds that the device has measured."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


DEVICE_TIME = DeviceTime()


def measure(
    benchmark: Any,
    implementation: str,
    case: Case,
    *,
    direction: str = FORWARD,
    dtype: str = "float32",
    device: torch.device = CPU,
    expected: dict[float, list[Tensor]] | None = None,
) -> None:
    """Times ``implementation`` of a case after its result has passed the check (``Prepared.check``).

    Args:
        dtype: floating leaves are cast to it; AUTOCAST: they are float32, under autocast to bfloat16.
        device: where the case was built. On a GPU the test is marked with the timer DEVICE_TIME.
        expected: results of the reference that other tests of this case and type share.
    """
    if implementation == "compiled" and case.no_compile:
        pytest.skip(case.no_compile)
    if implementation in case.missing:
        pytest.skip(f"{implementation} is {case.missing[implementation]}")
    prepared = Prepared(case, implementation, dtype)
    name = f"{case.op} {case.shape}, {dtype}" + (", cuda" if device.type == "cuda" else "")
    if (name, implementation) not in _correct:
        prepared.check(expected)
        _correct.add((name, implementation))
    backward = direction != FORWARD and case.upstream is not None
    benchmark.group = f"{name}, {direction}"
    benchmark.extra_info |= {
        "op": case.op, "shape": case.shape, "direction": direction, "dtype": dtype, "implementation": implementation,
        "dropout": case.dropout_p if backward else 0.0, "threads": torch.get_num_threads(),
    }  # fmt: skip
    with prepared.ready(direction) as call:
        call()  # compiles, and warms up
        if device.type == "cpu":
            benchmark(call)
            return
        peak = peak_bytes(call, device)
        timing = timed(call, clock_of(device), SECONDS)
    measured = result_of(prepared, direction, device, timing, peak)
    names = ("device", "host", "peak_bytes", "roof", "bound", "moved", "flops", "fraction")
    benchmark.extra_info |= {"gpu": torch.cuda.get_device_name(device)} | {n: getattr(measured, n) for n in names}
    rounds = iter(timing.device)
    benchmark.pedantic(lambda: DEVICE_TIME.pass_by(next(rounds)), rounds=len(timing.device))
