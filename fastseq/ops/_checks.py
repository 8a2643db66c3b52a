"""Checks of arguments that several ops share: their types, and what only data shows.

That is offsets, ids and rows, which become addresses. Every op names such a check (``register(check=...)`` in
_dispatch.py), made of the functions below, and its words are those of every implementation:

- plain PyTorch and Triton: the check runs before the op does. On the CPU always; on a GPU, where a look at the data
  waits for the device, only where FASTSEQ_CHECK=1 or ``check_data(True)`` asks for it.
- C++ refuses what would become a bad address while it reads it, before it writes anything. The check runs after that,
  to say what is wrong: a good call does not pay for it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def from_environment() -> bool | None:
    """True if FASTSEQ_CHECK asks for checks everywhere; None, the default, if not."""
    return True if os.environ.get("FASTSEQ_CHECK", "") not in ("", "0") else None


_override = from_environment()


class check_data:  # a class in lower case: used as a function and as a context, like torch.set_grad_enabled
    """Chooses whether ops look at the data of their arguments for ids, rows and offsets that are out of range.

    True: always; every op on a GPU then waits for the device, except while a CUDA graph is captured. None, the default:
    on the CPU only (FASTSEQ_CHECK=1 in the environment makes True the default). False: never where a Triton kernel or
    plain PyTorch serves, for tests of what they do unchecked: wrong offsets then reach memory of others. C++ always
    checks. Takes effect at once, process-wide; as a context manager it is undone at the end of the block.
    """

    def __init__(self, on: bool | None) -> None:
        global _override
        self._previous, _override = _override, on

    def __enter__(self) -> check_data:
        return self

    def __exit__(self, *error: object) -> None:
        global _override
        _override = self._previous


def demanded() -> bool:
    """Whether FASTSEQ_CHECK=1 or check_data(True) asks for checks everywhere."""
    return _override is True


def wanted(device: str) -> bool:
    """Whether to look at data on this type of device now."""
    if not (device == "cpu" if _override is None else _override):
        return False
    return device != "cuda" or not torch.cuda.is_current_stream_capturing()


def explained(check: Callable[..., None], arguments: Sequence[Any]) -> None:
    """Raises what the check of an op finds in arguments that C++ has refused; nothing where it finds nothing.

    Where the check itself fails, C++'s own error stands.
    """
    try:
        check(*arguments)
    except (ValueError, IndexError) as error:
        raise error from None
    except RuntimeError:
        return


FLOATING = {torch.float32, torch.bfloat16, torch.float16, torch.float64}


def floating(**tensors: Tensor | None) -> None:
    """Raises ValueError unless each tensor is of one of the types FLOATING; None is left out."""
    for name, x in tensors.items():
        if x is not None and x.dtype not in FLOATING:
            raise ValueError(f"{name} is {x.dtype}, expected torch.float32, bfloat16, float16 or float64")


def ids(name: str, x: Tensor, size: int | None = None) -> None:
    """Raises ValueError unless ``x`` is int64 with one dimension, of that size where one is given."""
    if x.dtype != torch.int64 or x.dim() != 1 or (size is not None and x.shape[0] != size):
        expected = "[*]" if size is None else f"[{size}]"
        raise ValueError(f"{name} is {x.dtype} {list(x.shape)}, expected torch.int64 {expected}")


def one_type(**tensors: Tensor | None) -> None:
    """Raises ValueError unless all are of one type among FLOATING (under autocast, which casts them, of any)."""
    kinds = {x.dtype for x in tensors.values() if x is not None}
    if len(kinds) == 1 and kinds <= FLOATING:
        return
    floating(**tensors)
    present = [(name, x) for name, x in tensors.items() if x is not None]
    for name, x in present[1:]:
        first, other = present[0]
        if x.dtype != other.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"{name} is {x.dtype} and {first} is {other.dtype}, expected one type")


def number(name: str, value: float, least: float = -math.inf) -> None:
    """Raises ValueError unless the argument ``name`` is a finite number, at least ``least``."""
    if not (math.isfinite(value) and value >= least):
        raise ValueError(
            f"{name} is {value}, expected a number" + ("" if least == -math.inf else f", at least {least:g}")
        )


def same_device(op: str, arguments: Sequence[Any]) -> None:
    """Raises ValueError unless all tensors among the arguments of ``fastseq::<op>`` are where the first one is."""
    tensors = [(index, x) for index, x in enumerate(arguments) if isinstance(x, Tensor)]
    first, device = tensors[0][0], tensors[0][1].device
    for index, x in tensors:
        if x.device != device:
            names = [argument.name for argument in getattr(torch.ops.fastseq, op).default._schema.arguments]
            remedy = f"{names[index]}.to({str(device)!r})"
            raise ValueError(f"{names[index]} is on {x.device}, expected {device} as {names[first]}: {remedy}")


def in_range(
    name: str, x: Tensor, end: int, expected: str, *, first: int = 0, error: type[Exception] = ValueError
) -> None:
    """Raises ``error`` with the first entry of ``x`` outside first ... end - 1: "name[i, j] is x, expected ..."."""
    wrong = ((x < first) | (x >= end)).nonzero()
    if wrong.shape[0]:
        index = wrong[0].tolist()
        raise error(f"{name}[{', '.join(map(str, index))}] is {int(x[tuple(index)])}, expected {expected}")


def offsets_of_rows(offsets: Tensor, rows: int, longest: int | None = None) -> None:
    """Raises ValueError unless offsets starts at 0, never decreases and ends at ``rows``, in steps of at most max_len.

    Args:
        longest: the argument max_len, or None where there is none.
    """
    if offsets.shape[0] < 1:
        raise ValueError("offsets is empty, expected at least the 0 it starts with")
    if offsets[0] != 0:
        raise ValueError(f"offsets must start at 0, not {int(offsets[0])}")
    lengths = offsets.diff()
    falls = (lengths < 0).nonzero()
    if falls.shape[0]:
        i = int(falls[0]) + 1
        raise ValueError(f"offsets decreases at index {i}: {int(offsets[i - 1])} then {int(offsets[i])}")
    if offsets[-1] != rows:
        raise ValueError(f"offsets ends at {int(offsets[-1])}, expected the number of rows, {rows}")
    if longest is not None:
        no_longer(lengths, longest, f"rows, more than max_len, {longest}")


def no_longer(lengths: Tensor, longest: int, what: str) -> None:
    """Raises ValueError with the first sequence of more than ``longest`` events: "sequence 2 has 9 what"."""
    beyond = (lengths.long() > longest).nonzero()
    if beyond.shape[0]:
        raise ValueError(f"sequence {int(beyond[0])} has {int(lengths[beyond[0, 0]])} {what}")
