"""Launches of kernels/adam_rows.py."""

from __future__ import annotations

from typing import Any

import torch

from ..adam_rows import MARKED, WARPS, _log2, _mark, _tile, _update
from . import Compiled, pointer


def _compiled(dtype: torch.dtype, lazy: bool, n_rows: int, width: int, count: int) -> Compiled:
    height, columns = _tile(width)
    given: dict[str, Any] = dict.fromkeys(("weight", "exp_avg", "exp_avg_sq", "grad"), pointer(dtype))
    given |= dict.fromkeys(("last_step", "step_number"), pointer(torch.int64))
    given |= {"slots": pointer(torch.int64 if lazy else torch.int32), "count": count, "n_rows": n_rows, "width": width}
    given |= {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "add1": 0.1, "add2": 1e-3, "eps": 1e-8, "LAZY": lazy}
    given |= {"LOG_BETA1": _log2(0.9), "LOG_BETA2": _log2(0.999), "ROWS": height, "COLUMNS": columns}
    return Compiled(
        _update,
        f"{dtype}, {'lazy' if lazy else 'dense'}, {count} of {n_rows} x {width}".removeprefix("torch."),
        {argument: given[argument] for argument in _update.arg_names},
        bytes=(6 * (count if lazy else n_rows) + count) * width * dtype.itemsize,
        num_warps=WARPS,
        seed=width == 128 and dtype == torch.float32,
    )


COMPILED = [
    Compiled(
        _mark,
        "5000 rows",
        {"rows": pointer(torch.int64), "slots": pointer(torch.int32), "count": 5000, "n_rows": 54543, "MARKED": MARKED},
        bytes=12 * 5000,
        seed=True,
    ),
    *(
        _compiled(dtype, lazy, 54543, width, 5000)
        for dtype in (torch.float32, torch.bfloat16)
        for lazy in (False, True)
        for width in (128, 63, 512)
    ),
]
