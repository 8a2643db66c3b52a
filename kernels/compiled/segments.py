"""Launches of kernels/segments.py."""

from __future__ import annotations

from typing import Any

import torch
import triton

from ..segments import CHUNK, ENTRIES, WARPS, _sum_chunks, _sum_segments
from . import Compiled, pointer


def _compiled(dtype: torch.dtype, weighted: bool, entries: int, rows: int, width: int) -> list[Compiled]:
    columns = min(128, triton.next_power_of_2(width))
    given: dict[str, Any] = {"sorted_ids": pointer(torch.int32), "source": pointer(dtype), "table": pointer(dtype)}
    given |= {**dict.fromkeys(("order", "starts"), pointer(torch.int64)), "partial": pointer(torch.float32)}
    given |= {"coefficients": pointer(torch.float32 if weighted else dtype), "per_row": 2 if weighted else 1}
    given |= {"width": width, "padding_idx": rows - 1, "CHUNK": CHUNK, "WEIGHTED": weighted}
    given |= {"ENTRIES": ENTRIES, "COLUMNS": columns}
    name = f"{dtype}{' weighted' if weighted else ''}, {entries} entries, {rows} x {width}".removeprefix("torch.")
    read = entries * (8 + width * dtype.itemsize)
    return [
        Compiled(
            kernel,
            name,
            {argument: given[argument] for argument in kernel.arg_names},
            bytes=read + written,
            num_warps=WARPS,
            seed=width == 128 and dtype != torch.float16,
        )
        for kernel, written in (
            (_sum_chunks, entries // CHUNK * width * 4),
            (_sum_segments, rows * (8 + width * dtype.itemsize)),
        )
    ]


COMPILED = [
    entry
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for weighted, width in ((True, 128), (False, 128), (False, 63))
    for entry in _compiled(dtype, weighted, 4096, 3417, width)
]
