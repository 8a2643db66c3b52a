"""The C++ extension where it was built; elsewhere an object that says so when it is used, never at import."""

from __future__ import annotations

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
