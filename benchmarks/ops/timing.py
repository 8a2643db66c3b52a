"""Time on the device, by events: many rounds, the cache emptied before each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

# One call of a function in seconds: on the device, and until the host was free again (on a GPU what launching costs).
Clock = Callable[[Callable[[], Any]], tuple[float, float]]

LEAST, MOST = 5, 300  # rounds
LONGEST_SLEEP = 0.02  # seconds


def cpu_clock(call: Callable[[], Any]) -> tuple[float, float]:
    """Wall clock: on the CPU a call ends when its work does."""
    before = time.perf_counter()
    call()
    seconds = time.perf_counter() - before
    return seconds, seconds


class CudaClock:
    """CUDA events around a call that finds an empty L2 cache and a device that the host is well ahead of.

    Before the first event the device overwrites twice its L2 cache, and sleeps for about as long as the host needs to
    launch the call, so that gaps between small kernels are not the host's. A call that waits for the device in
    the middle (rejection sampling) has those waits in its time, as it should.
    """

    def __init__(self, device: torch.device) -> None:
        properties: Any = torch.cuda.get_device_properties(device)
        self.device = device
        self.scratch = torch.empty(max(64 << 20, 2 * properties.L2_cache_size), dtype=torch.uint8, device=device)
        self.rate = 1e3 * (getattr(properties, "clock_rate", 0) or 2_000_000)  # cycles a second
        self.launching: dict[int, float] = {}

    def __call__(self, call: Callable[[], Any]) -> tuple[float, float]:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        self.scratch.zero_()
        known = self.launching.get(id(call), 0.0)
        if 0.0 < known < LONGEST_SLEEP:
            torch.cuda._sleep(int(1.5 * known * self.rate))
        start.record()
        before = time.perf_counter()
        call()
        host = time.perf_counter() - before
        stop.record()
        torch.cuda.synchronize(self.device)
        self.launching = {id(call): host}  # of this call alone: ids are used again
        return start.elapsed_time(stop) / 1e3, host


def clock_of(device: torch.device) -> Clock:
    """The clock of a device: events on a GPU, the wall on the CPU."""
    return CudaClock(device) if device.type == "cuda" else cpu_clock


def timed(
    call: Callable[[], Any],
    clock: Clock,
    seconds: float = 0.3,
    least: int = LEAST,
    now: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, float]]:
    """What ``clock`` says of each round, until ``seconds`` have passed: at least ``least`` rounds, at most MOST, after
    two that are not counted.
    """
    clock(call)  # compiles and warms up
    clock(call)
    rounds: list[tuple[float, float]] = []
    started = now()
    while len(rounds) < least or (now() - started < seconds and len(rounds) < MOST):
        rounds.append(clock(call))
    return rounds


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """The most memory that ``call`` holds at once beyond what is there before it, results included; None on the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def cuda_graph(call: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
    """A CUDA graph of ``call``, after warming up on a stream of its own: what replays it, and what ``call`` gave."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return graph.replay, outputs
