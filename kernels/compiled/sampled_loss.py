"""Launches of kernels/sampled_loss.py."""

from __future__ import annotations

from typing import Any

import torch

from ..sampled_loss import SCALE_WARPS, SHARED_TILE, SHARED_WARPS, TILE, _launch, _sampled_loss, _scale, _scale_tile
from . import Compiled, pointer


def _compiled(dtype: torch.dtype, loss: str, rows: int, width: int, count: int, shared: bool) -> list[Compiled]:
    """The forward and, for negatives of each target, the backward's element-wise kernel."""
    floats: dict[str, Any] = dict.fromkeys(("h", "table", "grad_h"), pointer(dtype))
    floats |= dict.fromkeys(("losses", "d_h", "d_scores", "grad", "coefficients"), pointer(torch.float32))
    floats["log_q"] = pointer(torch.float32 if loss == "sampled_softmax" else dtype)
    ids = {**dict.fromkeys(("targets", "negatives"), pointer(torch.int64)), "ids": pointer(torch.int32)}
    numbers = {"beta": 1.0, "count": count, "width": width, "n_items": 3417, "n_rows": rows, "stride": 1}
    launch = _launch(shared, width, count, (SHARED_TILE, SHARED_WARPS) if shared else TILE)
    height, columns = _scale_tile(width, count)
    scores = rows * (1 + count)
    gathered = (0 if shared else scores) * width * dtype.itemsize
    name = f"{dtype} {loss}, {rows} x {width}, {count} {'shared' if shared else 'each'}".removeprefix("torch.")
    kernels = [(_sampled_loss, {"LOSS": loss, "SHARED": shared, **launch}, gathered + 8 * scores + 4 * rows * width)]
    if not shared:
        scaled = {"ROWS": height, "COLUMNS": columns, "num_warps": SCALE_WARPS}
        kernels += [(_scale, scaled, 20 * scores + rows * width * (4 + dtype.itemsize))]
    return [
        Compiled(
            kernel,
            name,
            {argument: {**floats, **ids, **numbers, **constants}[argument] for argument in kernel.arg_names},
            bytes=moved,
            num_warps=constants["num_warps"],
            seed=loss == "bpr" and width == 128,
        )
        for kernel, constants, moved in kernels
    ]


# The seeds' losses (one and two negatives); every other loss; odd, narrow and wide rows.
_SHAPES = (
    ("bpr", 128, 1, False),
    ("bpr", 128, 2, False),
    ("bce", 128, 64, False),
    ("sampled_softmax", 128, 64, False),
    ("bpr", 63, 3, False),
    ("bce", 512, 3, False),
    ("bpr", 64, 256, True),
    ("sampled_softmax", 64, 1024, True),
)
COMPILED = [
    entry
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for loss, width, count, shared in _SHAPES
    for entry in _compiled(dtype, loss, 2048, width, count, shared)
]
