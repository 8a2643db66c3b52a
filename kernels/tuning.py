"""Which constants a kernel is launched with: its table's, or with FASTSEQ_AUTOTUNE=1 the fastest of a few.

The tables are fixed so that a result's bits, the first step's time and what benchmarks/compile_report.py checks are
the same everywhere. With FASTSEQ_AUTOTUNE=1 the first launch of a kind runs every candidate on that launch's own
tensors and keeps the fastest for the process. Kinds are told apart by what is fixed in a model (type, width, loss),
never by a length or a number of rows: those differ in every batch, and each would be searched for again. Sums may then
be added in another order than by default, and in another one in the next process.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from triton.runtime.errors import OutOfResources, PTXASError

Config = TypeVar("Config", bound=Hashable)
Result = TypeVar("Result")

ROUNDS = 5
_fastest: dict[Hashable, Hashable] = {}


def enabled() -> bool:
    """Whether FASTSEQ_AUTOTUNE asks for the search."""
    return os.environ.get("FASTSEQ_AUTOTUNE", "") not in ("", "0")


def run(
    kind: tuple[Hashable, ...],
    default: Config,
    candidates: Sequence[Config],
    launch: Callable[[Config], Result],
) -> Result:
    """``launch(config)`` with the default, or with FASTSEQ_AUTOTUNE=1 the fastest of it and the candidates.

    Args:
        kind: the kernel's name and what its constants may depend on; no lengths, no numbers of rows.
        default: the configuration of the kernel's table.
        candidates: others that give the same result but for the order of sums.
        launch: writes what it returns from inputs that it leaves alone, so that it may run more than once.
    """
    if not enabled():
        return launch(default)
    key = (*kind, torch.cuda.current_device() if torch.cuda.is_available() else "interpreter")
    if key not in _fastest:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return launch(default)  # a graph's launches cannot be timed; warm up before capturing
        times = {config: _seconds(launch, config) for config in dict.fromkeys((default, *candidates))}
        _fastest[key] = min(times, key=lambda config: times[config])
    chosen: Config = _fastest[key]  # type: ignore[assignment]
    return launch(chosen)


def _seconds(launch: Callable[[Config], object], config: Config) -> float:
    """Median of some launches after one that compiles; infinite if the chip cannot run it."""
    try:
        launch(config)
    except (OutOfResources, PTXASError):
        return float("inf")
    if not torch.cuda.is_available():
        before = time.perf_counter()
        launch(config)
        return time.perf_counter() - before
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(ROUNDS)]
    for start, stop in pairs:
        start.record()
        launch(config)
        stop.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in pairs)
