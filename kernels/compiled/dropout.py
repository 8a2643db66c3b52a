"""Launches of kernels/dropout.py."""

from __future__ import annotations

import torch

from fastseq.ops.philox import threshold

from ..dropout import _dropout, _tile
from . import Compiled, pointer


def _compiled(dtype: torch.dtype, rows: int, columns: int) -> Compiled:
    height, width = _tile(columns)
    ends = {"x": pointer(dtype), "y": pointer(dtype), "rng": pointer(torch.int64)}
    numbers = {"rows": rows, "columns": columns, "threshold": threshold(0.3), "scale": 1.0 / 0.7, "site": 2}
    return Compiled(
        _dropout,
        f"{dtype}, {rows} x {columns}".removeprefix("torch."),
        {**ends, **numbers, "ROWS": height, "COLUMNS": width},
        bytes=2 * rows * columns * dtype.itemsize,
        seed=True,
    )


# The input of GRU4Rec's recurrence, and Caser's features before fc1.
COMPILED = [
    _compiled(dtype, 2048, columns)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for columns in (128, 416)
]
