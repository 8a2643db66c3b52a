"""Launches of kernels/topk.py."""

from __future__ import annotations

from typing import Any

import torch
import triton

from ..topk import LAUNCHES, MERGE_WARPS, SIZES, USERS, _merge, _scan
from . import Compiled, pointer


def _compiled(dtype: torch.dtype, way: str, users: int, items: int, width: int, size: int) -> list[Compiled]:
    """The search with seen items and, where a first pass may not be the last, with a bound; and the merge."""
    step, warps = LAUNCHES[way][size > 64]
    columns = max(16, triton.next_power_of_2(width))
    arguments: dict[str, Any] = dict.fromkeys(("h", "weight", "bias", "scores"), pointer(dtype))
    arguments |= dict.fromkeys(("seen_offsets", "bounds", "lists", "ids"), pointer(torch.int64))
    arguments |= {"entries": pointer(torch.int32), "n_users": users, "n_items": items, "width": width, "part": 256}
    arguments |= {"n_entries": 160 * users, "k": 10, "parts": 32, "first": 0, "BIAS": False, "SEEN": True}
    arguments |= {"BOUNDED": size == SIZES[-1], "USERS": USERS, "SIZE": size, "WIDTH": columns}
    arguments |= {"STEP": min(columns, step), "PRECISION": "tf32" if way == "tf32" else "ieee"}
    matrix = {"ieee": None, "tf32": "tf32", "half": {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)}[way]
    name = f"{dtype} {way if dtype == torch.float32 else ''}".strip().removeprefix("torch.")
    scanned = (users + items) * width * dtype.itemsize, 2 * users * items * width
    launches: list[tuple[Any, int, int, int | None, tuple[str, ...]]] = [
        (_scan, *scanned, 2, ("sm_80", "sm_90", "sm_100")),
        (_scan, *scanned, 1, ("gfx942",)),
        (_merge, 8 * users * size * 32, 0, None, ()),
    ]
    return [
        Compiled(
            kernel,
            f"{name}, {users} users, {items} x {width}, best {size}",
            {argument: arguments[argument] for argument in kernel.arg_names},
            bytes=moved,
            flops=flops,
            num_warps=warps if kernel is _scan else MERGE_WARPS,
            num_stages=stages,
            matrix=matrix if flops else None,
            seed=width == 128 and size == SIZES[0],
            only=only,
        )
        for kernel, moved, flops, stages, only in launches
    ]


_KINDS = ((torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "half"), (torch.float16, "half"))
COMPILED = [
    entry
    for dtype, way in _KINDS
    for width, size in ((128, 64), (128, 128), (63, 64))
    for entry in _compiled(dtype, way, 256, 3416, width, size)
]
