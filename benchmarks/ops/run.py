"""Checks and times the cases, one result for each implementation, direction and type."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .case import OURS, Case, Spec
from .check import Prepared, ReferenceOutOfMemoryError, Unavailable
from .chips import chip_of
from .suite import by_importance, specs
from .timing import LEAST, Clock, clock_of, peak_bytes, timed


@dataclass(frozen=True)
class Result:
    """One implementation of one op in one shape, direction and type; times in seconds."""

    op: str
    shape: str
    direction: str  # "" where the case was not started
    dtype: str
    device: str
    implementation: str
    median: float | None = None  # on the device; None: not measured
    q1: float | None = None
    q3: float | None = None
    rounds: int = 0
    host: float | None = None  # median until the call returned: on a GPU what launching it costs
    peak_bytes: int | None = None  # memory beyond the inputs; None on the CPU
    roof: float | None = None  # the time below which the chip cannot be; None for a chip without figures
    bound: str = ""  # what binds it
    moved: float = 0.0  # bytes that the result needs
    flops: float = 0.0
    skipped: str = ""  # why there is no time
    failed: bool = False  # fastseq's own result was wrong, or it could not run

    @property
    def fraction(self) -> float | None:
        """Of the roof's rate that is reached: bytes/s where memory binds, FLOP/s where compute does."""
        return self.roof / self.median if self.roof is not None and self.median else None


def reason(error: Exception) -> str:
    """An exception in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory" + (" in the reference" if isinstance(error, ReferenceOutOfMemoryError) else "")
    if isinstance(error, Unavailable):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def result_of(
    prepared: Prepared, direction: str, device: torch.device, clock: Clock, seconds: float, least: int = LEAST
) -> tuple[Result, list[float]]:
    """One direction of an implementation that has passed its check, timed; and the device's seconds of each round."""
    case, dtype = prepared.case, prepared.dtype
    with prepared.ready(direction) as call:
        call()  # compiles, and warms up
        peak = peak_bytes(call, device)
        times, host = zip(*timed(call, clock, seconds, least), strict=True)
    q1, median, q3 = (float(np.quantile(times, share)) for share in (0.25, 0.5, 0.75))
    moved, flops, formed = case.work(direction, dtype)
    chip = chip_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    roof, bound = chip.roof(moved, flops, formed) if chip is not None else (None, "")
    result = Result(
        case.op, case.shape, direction, dtype, device.type, prepared.implementation, median, q1, q3, len(times),
        statistics.median(host), peak, roof, bound, moved, flops,
    )  # fmt: skip
    return result, list(times)


def measure(
    case: Case,
    dtype: str,
    directions: Sequence[str],
    device: torch.device,
    clock: Clock,
    against: Sequence[str] = (),
    seconds: float = 0.3,
) -> Iterator[Result]:
    """Every implementation of a case in one type. None is timed that has not passed its check just before."""
    expected: dict[float, list[Tensor]] = {}
    for name in case.implementations:
        if name != OURS and against and name not in against:
            continue
        row, prepared = Result(case.op, case.shape, "", dtype, device.type, name), None
        for direction in directions:
            if not row.skipped:
                try:
                    if prepared is None:
                        prepared = Prepared(case, name, dtype)
                        prepared.check(expected)
                    yield result_of(prepared, direction, device, clock, seconds)[0]
                    continue
                # A rival that cannot run here is a row without a time; ours is a failure. Without the memory for the
                # reference nothing can be checked, so nothing is timed: no fault of the op.
                except Exception as error:
                    failed = name == OURS and not isinstance(error, ReferenceOutOfMemoryError)
                    row = replace(row, skipped=reason(error), failed=failed)
            yield replace(row, direction=direction)


def run(
    device: torch.device,
    *,
    only: Sequence[str] = (),
    against: Sequence[str] = (),
    seconds: float = 0.3,
    budget: float | None = None,
    cases: Sequence[Spec] | None = None,
) -> Iterator[Result]:
    """Every op's cases on a device, something of each op first.

    Args:
        device: "cpu": C++ on few shapes; "cuda": Triton.
        only: files of ops, as in fastseq/ops; empty: all.
        against: rivals by name; empty: all.
        seconds: rounds of each measurement, in time.
        budget: no case is started after so many seconds; what is left is a row that says so.
        cases: in place of the suite's.
    """
    clock, started = clock_of(device), time.monotonic()
    for spec, dtype in by_importance(specs(device.type, only) if cases is None else cases):
        row = Result(spec.op, spec.words, "", dtype, device.type, OURS)
        if budget is not None and time.monotonic() - started > budget:
            yield replace(row, skipped="out of time")
            continue
        print(f"{spec.op}, {dtype} …", file=sys.stderr, flush=True)
        torch.manual_seed(0)
        try:
            case = spec.build(device)
        except torch.OutOfMemoryError as error:
            yield replace(row, skipped=reason(error))
            continue
        yield from measure(case, dtype, spec.directions, device, clock, against=against, seconds=seconds)
        del case
        if device.type == "cuda":
            torch.cuda.empty_cache()


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure depends on: device, versions, date."""
    from fastseq.training.throughput import versions

    about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "device": "CPU", **versions()}
    if device.type == "cuda":
        about |= {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        about["triton"] = metadata.version("triton") if find_spec("triton") else "none"
        about["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return about
