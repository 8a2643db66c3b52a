"""Launches of kernels/gru.py."""

from __future__ import annotations

from typing import Any

import torch

from ..gru import SEQUENCES, STEP_COLUMNS, STEP_ROWS, _backward, _configuration, _forward, _step, _step_backward
from . import Compiled, pointer


def _compiled(
    dtype: torch.dtype, hidden: int, precision: str, bias: bool, sequences: int, length: int
) -> list[Compiled]:
    """Both passes, for every architecture that is given the same constants."""
    limits = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
    groups: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for name, shared in limits.items():
        constants = _configuration(hidden, dtype.itemsize, precision, shared)
        groups.setdefault(tuple(constants.items()), []).append(name)
    events = sequences * length
    matrix = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, {"tf32": "tf32"}.get(precision))
    way_of_float32 = f" {precision}" if dtype == torch.float32 else ""
    floats = pointer(dtype)
    indices = {"offsets": pointer(torch.int32), "order": pointer(torch.int64), "sequences": sequences}
    shared_arguments = {**indices, **dict.fromkeys(("weight", "h", "saved"), floats)}
    # What either pass reads and writes beside them, and how many values an event that makes.
    passes = (
        (_forward, {"x": floats, "bias": floats if bias else None}, 8),
        (_backward, dict.fromkeys(("grad", "d_x", "d_hidden", "previous"), floats), 13),
    )
    entries = []
    for chosen, names in groups.items():
        constants = {"HIDDEN": hidden, "SEQUENCES": SEQUENCES, "PRECISION": precision, **dict(chosen)}
        launch = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
        way = "resident" if constants["CHUNK"] == constants["WIDTH"] else "streamed"
        shape = f"{dtype}{way_of_float32}, {sequences} x {length}, H {hidden}, {way}".removeprefix("torch.")
        for kernel, ends, values in passes:
            entries.append(
                Compiled(
                    kernel,
                    shape,
                    {**shared_arguments, **ends, **constants},
                    bytes=(events * values + 3 * hidden) * hidden * dtype.itemsize,
                    flops=events * 6 * hidden * hidden,
                    matrix=matrix,
                    seed=hidden == 128,
                    only=tuple(names),
                    **launch,
                )
            )
    return entries


_KINDS = ((torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee"), (torch.float16, "ieee"))
_SHAPES = ((128, False, _KINDS), (100, True, _KINDS[:3]), (64, True, _KINDS[:3]), (24, False, _KINDS[:3]))
COMPILED = [
    entry
    for hidden, bias, kinds in _SHAPES
    for dtype, precision in kinds
    for entry in _compiled(dtype, hidden, precision, bias, 48, 200)
]


def _compiled_steps(dtype: torch.dtype, hidden: int, sequences: int) -> list[Compiled]:
    """One event of every sequence, above WIDEST."""
    floats, wide = pointer(dtype), pointer(torch.float32)
    common: dict[str, Any] = {"offsets": pointer(torch.int32), "h": floats, "saved": floats, "t": 3, "HIDDEN": hidden}
    common |= {"sequences": sequences, "ROWS": STEP_ROWS, "COLUMNS": STEP_COLUMNS}
    forward = {"x": floats, "a": wide, "state": wide}
    backward = {**dict.fromkeys(("grad", "d_x", "d_hidden", "previous"), floats), "carry": wide, "d_a": wide}
    shape = f"{dtype}, {sequences} sequences, H {hidden}".removeprefix("torch.")
    elements = sequences * hidden
    return [
        Compiled(_step, shape, {**common, **forward}, bytes=elements * (5 * 4 + 8 * dtype.itemsize)),
        Compiled(_step_backward, shape, {**common, **backward}, bytes=elements * (5 * 4 + 13 * dtype.itemsize)),
    ]


COMPILED += [entry for dtype in (torch.float32, torch.bfloat16) for entry in _compiled_steps(dtype, 256, 48)]
