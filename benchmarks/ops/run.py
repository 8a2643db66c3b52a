"""Checks and times the cases, one result for each implementation, direction and type."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .case import Case, Spec
from .check import Prepared, ReferenceOutOfMemoryError
from .chips import chip_of
from .suite import by_importance, specs
from .timing import Clock, Timing, clock_of, peak_bytes, timed

OURS = "fastseq"


@dataclass(frozen=True)
class Result:
    """One implementation of one op in one shape, direction and type; times in seconds.

    Attributes:
        median, q1, q3: time on the device; None: not measured.
        host: median until the call returned: on a GPU what launching it costs.
        peak_bytes: memory beyond the inputs; None on the CPU.
        roof, bound: the time below which the chip cannot be, and what binds; None for a chip without figures.
        moved, flops: bytes and FLOPs that the result needs.
        skipped: why there is no time.
        failed: fastseq's own result was wrong, or it could not run.
    """

    op: str
    shape: str
    direction: str
    dtype: str
    device: str
    implementation: str
    median: float | None = None
    q1: float | None = None
    q3: float | None = None
    rounds: int = 0
    host: float | None = None
    peak_bytes: int | None = None
    roof: float | None = None
    bound: str = ""
    moved: float = 0.0
    flops: float = 0.0
    skipped: str = ""
    failed: bool = False

    @property
    def fraction(self) -> float | None:
        """Of the roof's rate that is reached: bytes/s where memory binds, FLOP/s where compute does."""
        return self.roof / self.median if self.roof is not None and self.median else None


def implementations(case: Case, against: Sequence[str] = ()) -> list[str]:
    """fastseq and its rivals; ``against`` names the rivals that are wanted, empty all."""
    names = [*case.functions, *case.missing, "compiled"]
    return [name for name in names if name == OURS or not against or name in against]


def reason(error: Exception) -> str:
    """An exception in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory" + (" in the reference" if isinstance(error, ReferenceOutOfMemoryError) else "")
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def result_of(prepared: Prepared, direction: str, device: torch.device, timing: Timing, peak: int | None) -> Result:
    """A measurement beside the roof of its case."""
    case = prepared.case
    moved, flops, formed = case.work(direction, prepared.dtype)
    chip = chip_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    roof, bound = chip.roof(moved, flops, formed) if chip is not None else (None, "")
    q1, q3 = timing.quartiles
    host = sorted(timing.host)[len(timing.host) // 2]
    return Result(
        case.op, case.shape, direction, prepared.dtype, device.type, prepared.implementation, timing.median, q1, q3,
        len(timing.device), host, peak, roof, bound, moved, flops,
    )  # fmt: skip


def measure(
    case: Case,
    dtype: str,
    directions: Sequence[str],
    device: torch.device,
    clock: Clock,
    *,
    against: Sequence[str] = (),
    seconds: float = 0.3,
) -> Iterator[Result]:
    """Every implementation of a case in one type. None is timed that has not passed its check just before."""
    expected: dict[float, list[Tensor]] = {}
    for name in implementations(case, against):
        why, failed = case.missing.get(name, case.no_compile if name == "compiled" else ""), False
        prepared = None
        if not why:
            try:
                prepared = Prepared(case, name, dtype)
                prepared.check(expected)
            except Exception as error:  # a rival that cannot run here is a row without a time; ours is a failure
                why, prepared = reason(error), None
                # Without the memory for the reference nothing can be checked, so nothing is timed: no fault of the op.
                failed = name == OURS and not isinstance(error, ReferenceOutOfMemoryError)
        for direction in directions:
            row = Result(case.op, case.shape, direction, dtype, device.type, name, skipped=why, failed=failed)
            if prepared is not None:
                try:
                    with prepared.ready(direction) as call:
                        call()
                        peak = peak_bytes(call, device)
                        row = result_of(prepared, direction, device, timed(call, clock, seconds), peak)
                except Exception as error:
                    row = Result(case.op, case.shape, direction, dtype, device.type, name, skipped=reason(error),
                                 failed=name == OURS)  # fmt: skip
            yield row


def run(
    device: torch.device,
    *,
    only: Sequence[str] = (),
    against: Sequence[str] = (),
    seconds: float = 0.3,
    budget: float | None = None,
    on_start: Callable[[Spec, str], None] | None = None,
    chosen: Sequence[Spec] | None = None,
) -> Iterator[Result]:
    """Every op's cases on a device, something of each op first.

    Args:
        device: "cpu": C++ on few shapes; "cuda": Triton.
        only: files of ops, as in fastseq/ops; empty: all.
        against: rivals by name; empty: all.
        seconds: rounds of each measurement, in time.
        budget: no case is started after so many seconds; what is left is a row that says so.
        on_start: called before each case in each type.
        chosen: cases instead of the suite's.

    Raises:
        ValueError: if ``only`` names no op.
    """
    clock, started = clock_of(device), time.monotonic()
    for spec, dtype in by_importance(specs(device.type, only) if chosen is None else chosen):
        if budget is not None and time.monotonic() - started > budget:
            yield Result(spec.op, named(spec), "", dtype, device.type, OURS, skipped="out of time")
            continue
        if on_start is not None:
            on_start(spec, dtype)
        torch.manual_seed(0)
        try:
            case = spec.build(device)
        except torch.OutOfMemoryError as error:
            yield Result(spec.op, named(spec), "", dtype, device.type, OURS, skipped=reason(error))
            continue
        yield from measure(case, dtype, spec.directions, device, clock, against=against, seconds=seconds)
        del case
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measured(results: Sequence[Result]) -> bool:
    """Whether there is a time of any op of fastseq: a run without one proves nothing."""
    return any(result.implementation == OURS and result.median is not None for result in results)


def collect(results: Iterator[Result]) -> tuple[list[Result], bool]:
    """All results, and whether Ctrl-C ended them early: those before it are kept."""
    found: list[Result] = []
    try:
        for result in results:
            found.append(result)
    except KeyboardInterrupt:
        return found, True
    return found, False


def named(spec: Spec) -> str:
    """A case in words before it is built."""
    words = getattr(spec.build, "keywords", {})
    return ", ".join(f"{key} {value}" for key, value in words.items()) or "seed"


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure depends on: device, driver, versions, date."""
    from fastseq.training.throughput import versions

    found: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "device": "CPU"}
    found |= versions()
    if device.type == "cuda":
        found |= {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda, "driver": _driver()}
        found["triton"] = metadata.version("triton") if find_spec("triton") else "none"
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return found


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
