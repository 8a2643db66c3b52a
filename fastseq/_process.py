"""Settings of a process whose owner we are (the command line, the benchmarks, the tests), and its memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt in <malloc.h>


SPIN_COUNT = "2000"  # of GOMP_SPINCOUNT


def own_process() -> None:
    """Sets what is left to a process's owner: how OpenMP threads wait, and what becomes of freed memory.

    Threads give up their core soon when they wait, unless the user has chosen otherwise. By default libgomp spins for
    milliseconds at every barrier; where anything else runs on the same cores, each wait then costs a time slice:
    measured with one busy process beside training on 2 cores, 16 k targets/s against 21 k, at 5% less on an idle
    machine. It is read when libgomp is loaded, so this must run before torch is imported.

    glibc keeps freed memory, see keep_freed_memory.
    """
    wait_briefly()
    keep_freed_memory(32 << 20)


def keep_freed_memory(largest: int) -> None:
    """glibc keeps freed blocks of up to ``largest`` bytes, 1 GB of them at the end of its heap, for the next step.

    A training step allocates activations and gradients and frees them again: returned to the system, each step takes
    them back with a page fault for every 4 KB. Nothing changes where the environment has settings of malloc's own, or
    with another C library. glibc before 2.35 takes at most 32 MB.
    """
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    tuned = tuned or any(name.startswith("MALLOC_") for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not tuned else None
    if mallopt is not None:
        if not mallopt(_M_MMAP_THRESHOLD, largest):
            mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def wait_briefly() -> bool:
    """Only how OpenMP threads wait: in this process if torch is not imported yet, and in those that it starts.

    Returns:
        Whether GOMP_SPINCOUNT was set here: neither it nor OMP_WAIT_POLICY was the user's choice already.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return False
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    return True


def rss() -> int:
    """Resident memory in bytes, after glibc has given back what it keeps of freed memory; 0 where the system does not
    say."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None:
        trim(0)
    return _first_kilobytes(Path("/proc/self/status"), "VmRSS:") or 0


def available_memory(processes: int = 1) -> tuple[int, int] | None:
    """Bytes that this process can come to hold, what it holds among them, as one of so many on the machine that are
    alike: now, of the memory that the system has available, and at most, of all memory and swap that there is. Both
    within the limit of its control group (a container's). None where the system does not say."""
    meminfo, groups = Path("/proc/meminfo"), ["memory/memory.limit_in_bytes"]  # of version 1
    with contextlib.suppress(OSError, StopIteration):  # of version 2 a file in each group above this one
        own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        groups += [f".{each}/memory.max" for each in (own, *map(str, Path(own).parents))]
    now = most = math.inf
    for group in groups:
        with contextlib.suppress(OSError, ValueError):  # the second: "max"
            now = most = min(most, int((Path("/sys/fs/cgroup") / group).read_text()))
    now /= processes
    free, total = (_first_kilobytes(meminfo, name) for name in ("MemAvailable:", "MemTotal:"))
    if free is not None and total is not None:
        held = _first_kilobytes(Path("/proc/self/status"), "VmRSS:") or 0
        now, most = min(now, free / processes + held), min(most, total)
    if most == math.inf:
        return None
    most = (most + (_first_kilobytes(meminfo, "SwapTotal:") or 0)) / processes
    return int(now), int(max(now, most))


def _first_kilobytes(path: Path, name: str) -> int | None:
    """The entry ``name`` of a file under /proc, in bytes; None where there is none."""
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None


def reset_peak_rss() -> None:
    """Starts a new peak where the kernel can (Linux); elsewhere the peak is that of the whole process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_mb() -> float:
    """Peak resident memory in MB (10⁶ bytes) since the last reset_peak_rss; 0 where the system does not say."""
    if peak := _first_kilobytes(Path("/proc/self/status"), "VmHWM:"):
        return peak / 1e6
    try:
        import resource  # not on Windows
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
