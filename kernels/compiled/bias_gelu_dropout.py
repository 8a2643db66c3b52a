"""Launches of kernels/bias_gelu_dropout.py."""

from __future__ import annotations

import torch

from fastseq.ops.philox import threshold

from ..bias_gelu_dropout import _backward, _forward, _tile
from . import Compiled, pointer


def _compiled(dtype: torch.dtype, rows: int, columns: int, p: float) -> list[Compiled]:
    height, width = _tile(columns)
    tensors = dict.fromkeys(("grad", "x", "bias", "y", "dx"), pointer(dtype))
    tensors |= {"partial": pointer(torch.float32), "rng": pointer(torch.int64) if p else None}
    numbers = {"rows": rows, "columns": columns, "tiles": 2, "threshold": threshold(p), "scale": 1.0 / (1.0 - p)}
    given = {**tensors, **numbers, "site": 3, "DROPOUT": p > 0.0, "ROWS": height, "COLUMNS": width}
    shape = f"{dtype}, {rows} x {columns}, p {p}".removeprefix("torch.")
    return [
        Compiled(
            kernel,
            shape,
            {name: given[name] for name in kernel.arg_names},
            bytes=count * rows * columns * dtype.itemsize,
            seed=columns == 512,
        )
        for kernel, count in ((_forward, 2), (_backward, 3))
    ]


# SASRec's inner_size; a narrow and an odd one.
COMPILED = [
    entry
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for columns, p in ((512, 0.3), (512, 0.0), (63, 0.3), (8, 0.3))
    for entry in _compiled(dtype, 16384, columns, p)
]
