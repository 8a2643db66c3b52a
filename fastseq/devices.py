"""Which device computes, what it is called, and what is said when its memory is full."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from ._process import peak_rss_mb, reset_peak_rss
from .errors import ConfigError


def find_device(device: str | torch.device = "auto", key: str = "device") -> torch.device:
    """The device of that name, which is there.

    Args:
        device: "auto" (a GPU where PyTorch sees one, else the CPU), "cpu", "cuda" or "cuda:n". Of the processes that
            torchrun starts, "auto" and "cuda" give each the GPU of its LOCAL_RANK.
        key: what errors call it.

    Raises:
        ConfigError: if it is none of those, or not here.
    """
    name, gpus = str(device), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    try:
        found = torch.device(name)
    except RuntimeError:
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda") or (found.type == "cpu" and found.index):
        raise ConfigError(f"{key} is {name!r}, expected auto, cpu or cuda[:n]")
    if found.type == "cpu":
        return torch.device("cpu")
    if not gpus:
        raise ConfigError(f"{key} is {name!r}, but PyTorch sees no GPU here; use cpu or auto")
    if found.index is None and "LOCAL_RANK" in os.environ:
        rank = int(os.environ["LOCAL_RANK"])
        if rank >= gpus:
            raise ConfigError(
                f"local rank {rank} has no GPU of its own, PyTorch sees {gpus}: start torchrun with --nproc-per-node "
                f"{gpus}, or use device cpu (cuda:0 where each process is shown one GPU alone)"
            )
        return torch.device("cuda", rank)
    if (found.index or 0) >= gpus:
        raise ConfigError(f"{key} is {name!r}, but the last one here is number {gpus - 1}")
    return found


def claim_device(device: str | torch.device = "auto", key: str = "device") -> torch.device:
    """``find_device``, and where it has a number also the current GPU from now on: for the owner of a process."""
    found = find_device(device, key)
    if found.index is not None:
        torch.cuda.set_device(found)
    return found


def wait_for(device: torch.device) -> None:
    """Returns when the device has done what it was given: what a clock must do before it is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory that nothing uses: what PyTorch keeps of freed tensors is free."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + kept)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory at a time, in 10⁶ bytes: of a GPU's tensors, or of the process."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else peak_rss_mb()


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new peak."""
    reset_peak_rss()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


@cache
def device_name(device: torch.device) -> str:
    """What made a figure: a GPU's name as PyTorch has it, such as "NVIDIA H200", or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


class DeviceMemoryError(torch.OutOfMemoryError):
    """A GPU's memory is full; the message names what was running, how much was free, and the remedy."""


@contextmanager
def memory_named(device: torch.device, doing: str, remedy: str, more: Callable[[], str] = str) -> Iterator[None]:
    """Raises DeviceMemoryError for PyTorch's own error inside, ``more()`` at its end; another's is left as it is."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        message = str(error)
        if not isinstance(error, DeviceMemoryError):
            free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
            message = (
                f"out of GPU memory while {doing}: {free:.1f} of {total:.1f} GiB of {device_name(device)} were free. "
                f"{remedy[0].upper()}{remedy[1:]}, or compute on the CPU."
            )
        raise DeviceMemoryError(message + more()) from error
