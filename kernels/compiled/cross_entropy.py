"""Launches of kernels/cross_entropy.py."""

from __future__ import annotations

from typing import Any

import torch

from ..cross_entropy import (
    COMBINED_ROWS,
    _backward,
    _backward_tiles,
    _combine,
    _forward,
    _forward_tiles,
    _gradient,
    _losses,
)
from . import Compiled, pointer


def _compiled(dtype: torch.dtype, way: str, rows: int, items: int, width: int, more: bool) -> list[Compiled]:
    """Every kernel; with ``more``, a bias and a softcap."""
    arguments: dict[str, Any] = dict.fromkeys(("h", "weight", "bias", "a", "b"), pointer(dtype))
    names = ("largest", "sums", "hits", "losses", "lses", "grad", "d_a", "d_bias")
    arguments |= {**dict.fromkeys(names, pointer(torch.float32)), "targets": pointer(torch.int64)}
    arguments |= {"n_rows": rows, "n_items": items, "width": width, "part": 512, "parts": 8, "stride": 0}
    arguments |= {"ignore_index": -100, "softcap": 4.0 if more else 1.0, "BIAS": more, "SOFTCAP": more}
    arguments["PRECISION"] = "tf32" if way == "tf32" else "ieee"
    matrix = {"ieee": None, "tf32": "tf32", "half": {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)}[way]
    forward, backward = _forward(_forward_tiles(way, width), width), _backward(_backward_tiles(way, dtype), width)
    both, product = (rows + items) * width * dtype.itemsize, 2 * rows * items * width
    name = f"{dtype} {way if dtype == torch.float32 else ''}".strip().removeprefix("torch.")
    sizes = f"{rows} x {items}, width {width}{', bias, softcap' if more else ''}"
    given = {"ITEMS": False, "a_rows": rows, "b_rows": items}, {"ITEMS": True, "a_rows": items, "b_rows": rows}
    launches: list[tuple[Any, str, dict[str, Any], int, int]] = [
        (_losses, "", forward, both, product),
        (_gradient, ", of h", {**backward, **given[0]}, both + rows * width * dtype.itemsize, 2 * product),
        (_gradient, ", of weight", {**backward, **given[1]}, both + items * width * dtype.itemsize, 2 * product),
    ]
    if width == 128 and not more:
        launches += [(_combine, "", {"ROWS": COMBINED_ROWS, "num_warps": 4}, 4 * rows * (3 * 8 + 4), 0)]
    return [
        Compiled(
            kernel,
            f"{name}, {sizes}{side}",
            {argument: {**arguments, **constants}[argument] for argument in kernel.arg_names},
            bytes=moved,
            flops=flops,
            num_warps=constants["num_warps"],
            num_stages=constants.get("num_stages"),
            matrix=matrix if flops else None,
            seed=width == 128 and not more,
        )
        for kernel, side, constants, moved, flops in launches
    ]


_KINDS = ((torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "half"), (torch.float16, "half"))
COMPILED = [
    entry
    for dtype, way in _KINDS
    for width, more in ((128, False), (128, True), (64, False), (256, False))
    for entry in _compiled(dtype, way, 2048, 3417, width, more)
]
