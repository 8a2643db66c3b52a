"""Launches of kernels/embed_sequence.py."""

from __future__ import annotations

from typing import Any

import torch

from fastseq.ops.philox import threshold

from .. import rows
from ..embed_sequence import BACKWARD, _backward, _forward, _position_gradient
from . import Compiled, pointer


def _compiled(dtype: torch.dtype, events: int, columns: int, position: bool, norm: bool, p: float) -> list[Compiled]:
    height, width, forward_warps = rows.tile(columns)
    backward_warps = rows.tile(columns, BACKWARD)[2]
    tensors: dict[str, Any] = dict.fromkeys(("grad", "y", "item_weight"), pointer(dtype))
    tensors |= {"position_weight": pointer(dtype) if position else None, "rng": pointer(torch.int64) if p else None}
    tensors |= dict.fromkeys(("norm_weight", "norm_bias"), pointer(dtype) if norm else None)
    tensors |= dict.fromkeys(("means", "rstds", "partial", "gradient"), pointer(torch.float32))
    tensors |= {"items": pointer(torch.int64), "offsets": pointer(torch.int32)}
    numbers = {"n_rows": events, "sequences": 128, "steps": 8, "columns": columns, "n_items": 5000, "longest": 200}
    numbers |= {"tiles": 2, "per_group": 64, "threshold": threshold(p), "site": 2}
    shape = {"POSITION": position, "NORM": norm, "DROPOUT": p > 0.0, "ROWS": height, "COLUMNS": width}
    given = {**tensors, **numbers, "eps": 1e-8, "scale": 1.0 / (1.0 - p), **shape}
    parts = "".join([", position" if position else "", ", norm" if norm else ""])
    launches = [(_forward, 2), (_backward, 3)] if norm or p else [(_forward, 2)]
    return [
        Compiled(
            kernel,
            f"{dtype}, {events} x {columns}{parts}, p {p}".removeprefix("torch."),
            {name: given[name] for name in kernel.arg_names},
            bytes=count * events * columns * dtype.itemsize,
            num_warps=forward_warps if kernel is _forward else backward_warps,
            seed=columns == 128 and p > 0.0,
        )
        for kernel, count in [*launches, *([(_position_gradient, 1)] if position else [])]
    ]


# SASRec's; GRU4Rec's; without dropout; odd, narrow and wide ones.
_SHAPES = (
    (128, True, True, 0.3),
    (128, False, False, 0.2),
    (128, True, True, 0.0),
    (64, False, False, 0.0),
    (63, True, True, 0.3),
    (8, True, True, 0.3),
    (2048, True, True, 0.3),
)
COMPILED = [
    entry
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for shape in _SHAPES
    for entry in _compiled(dtype, 16384, *shape)
]
