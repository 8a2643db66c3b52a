"""What is compiled ahead of time: one file a kernel file, with its launches in the list ``COMPILED`` (docs/kernels.md).

benchmarks/compile_report.py compiles every entry for every architecture and checks registers, spills, shared memory and
matrix instructions. An entry is one launch, written as the wrapper makes it, with the wrapper's own constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Compiled:
    """One launch of one kernel.

    Args:
        kernel: the function under ``@triton.jit``.
        shape: the launch in words: type and sizes. With the kernel's name it is the row's name in the table.
        arguments: every argument by name, as the launch passes it: numbers, None and constexprs as they are, a tensor
            as the type of its pointer (``pointer(torch.float32)`` is "*fp32"). Numbers are specialised as Triton's
            launcher does it: 1 becomes a constant, multiples of 16 are known to be such, unless the kernel forbids it.
        bytes: what must be read and written once, whatever the kernel; with flops, the roof.
        flops: additions and multiplications that the result needs. Element-wise work may be left out.
        num_warps, num_stages: as in the launch; None where it leaves the stages to Triton.
        matrix: how products are formed: "tf32", "bf16" or "fp16" (matrix instructions are expected), or None.
        seed: whether a seed configuration launches it (``--seed-shapes``).
        only: architectures where this configuration is launched; empty: all.
    """

    kernel: Any
    shape: str
    arguments: Mapping[str, Any]
    bytes: int
    flops: int = 0
    num_warps: int = 4
    num_stages: int | None = None
    matrix: str | None = None
    seed: bool = False
    only: tuple[str, ...] = ()


_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}


def pointer(dtype: torch.dtype) -> str:
    """The type of a pointer to a tensor of this type, as Triton writes it."""
    return _POINTERS[dtype]


def distinct(entries: Iterable[Compiled], sizes: frozenset[str] = frozenset()) -> list[Compiled]:
    """The entries without those whose code another one before them has: same kernel, types, constants, warps, stages.

    Args:
        entries: those of the seed configurations first.
        sizes: constants that are sizes of a model or batch, not of a tile: entries that differ in them alone are the
            same launch for another shape.
    """
    kept: dict[tuple[object, ...], Compiled] = {}
    entries = iter(entries)
    for entry in entries:
        if not hasattr(entry.kernel, "params"):  # in the interpreter, which compiles nothing
            return [entry, *entries]
        told: list[object] = []
        for parameter in entry.kernel.params:
            value = entry.arguments[parameter.name]
            if isinstance(value, int) and not parameter.is_constexpr:  # only what the launcher would specialise
                value = None if parameter.do_not_specialize else (value == 1, value % 16 == 0)
            told.append(None if parameter.name in sizes or isinstance(value, float) else value)
        key = (entry.kernel.__name__, *told, entry.num_warps, entry.num_stages, entry.matrix, entry.only)
        kept.setdefault(key, entry)
    return list(kept.values())
