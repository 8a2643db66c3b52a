"""The C++ extension where it was built; elsewhere an object that says so when it is used, never at import.

And what a forked child needs to call it: libgomp's threads do not survive a fork, and whoever waits for them hangs.
"""

from __future__ import annotations

import os
from typing import Any

from .errors import ConfigError


class _Missing:
    """Stands for fastseq._C in an installation without it."""

    def __init__(self, cause: ImportError) -> None:
        self._cause = cause

    def __getattr__(self, name: str) -> Any:
        raise ImportError(
            f"fastseq._C.{name} is needed here, but the C++ extension could not be imported ({self._cause}): reinstall "
            "fastseq-rec where a C++17 compiler is found (pip install . needs g++ or clang++)"
        ) from self._cause


_C: Any
try:
    from . import _C  # type: ignore[no-redef]

    _C.isa()  # reads FASTSEQ_CPU_ISA
except ImportError as error:
    _C = _Missing(error)
except ValueError as error:
    raise ConfigError(str(error)) from None


_had_threads = False


def _before_fork() -> None:
    global _had_threads
    try:
        _had_threads = len(os.listdir("/proc/self/task")) > 1
    except OSError:  # not on Linux: nobody knows
        _had_threads = True


def _after_fork_in_child() -> None:
    if _had_threads:
        import torch

        torch.set_num_threads(1)  # what every kernel, fastseq's and PyTorch's, asks for its number of threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
