"""Launches of kernels/dropout_add_norm.py."""

from __future__ import annotations

from typing import Any

import torch

from fastseq.ops.philox import threshold

from ..dropout_add_norm import _backward, _forward
from ..rows import tile
from . import Compiled, pointer


def _compiled(dtype: torch.dtype, rows: int, columns: int, p: float, bias: bool) -> list[Compiled]:
    height, width, warps = tile(columns)
    tensors: dict[str, Any] = dict.fromkeys(
        ("grad", "x", "residual", "weight", "bias", "y", "dx", "dresidual"), pointer(dtype)
    )
    tensors |= dict.fromkeys(("means", "rstds", "partial"), pointer(torch.float32))
    tensors |= {"x_bias": pointer(dtype) if bias else None, "rng": pointer(torch.int64) if p else None}
    numbers = {"rows": rows, "columns": columns, "tiles": 2, "eps": 1e-5, "threshold": threshold(p), "site": 2}
    shape = {"BIAS": bias, "DROPOUT": p > 0.0, "ROWS": height, "COLUMNS": width}
    given = {**tensors, **numbers, "scale": 1.0 / (1.0 - p), **shape}
    name = f"{dtype}, {rows} x {columns}, p {p}{', x_bias' if bias else ''}".removeprefix("torch.")
    return [
        Compiled(
            kernel,
            name,
            {name: given[name] for name in kernel.arg_names},
            bytes=count * rows * columns * dtype.itemsize,
            num_warps=warps,
            seed=columns == 128 and bias,
        )
        for kernel, count in ((_forward, 3), (_backward, 5))
    ]


# SASRec's embedding_size; odd, narrow and wide ones.
_SHAPES = ((128, 0.3, True), (128, 0.0, True), (64, 0.3, False), (63, 0.3, True), (8, 0.3, True), (2048, 0.3, True))
COMPILED = [
    entry
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for columns, p, bias in _SHAPES
    for entry in _compiled(dtype, 16384, columns, p, bias)
]
