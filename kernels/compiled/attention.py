"""Launches of kernels/attention.py."""

from __future__ import annotations

from typing import Any

import torch
import triton

from fastseq.ops.philox import threshold

from ..attention import _backward_keys, _backward_queries, _backward_tile, _forward_blocks, _forward_tile
from ..attention_common import LAST_KEYS, by_blocks, config_of, one_tile
from ..last_query_attention import _last_backward, _last_forward
from . import Compiled, pointer


def _compiled(dtype: torch.dtype, way: str, width: int) -> list[Compiled]:
    """Every launch for 64 sequences, 4 heads; for the longest sequence of each kernel, 200 beyond one tile."""
    config, precision = config_of(way, triton.next_power_of_2(max(16, width)))
    matrix = {"ieee": None, "tf32": "tf32", "half": {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype)}[way]
    shape = {"DROPOUT": True, "D": width, "WIDTH": triton.next_power_of_2(max(16, width))}
    rows = dict.fromkeys(("q", "k", "v", "out", "grad", "dq", "dk", "dv"), pointer(dtype))
    others: dict[str, Any] = {"lse": pointer(torch.float32), "means": pointer(torch.float32)}
    others |= {"offsets": pointer(torch.int32), "rng": pointer(torch.int64)}
    strides = {f"{x}_{step}": 12 * width if step == "row" else width for x in "qkv" for step in ("row", "head")}
    numbers = {"blocks": 4, "scale": 0.25, "threshold": threshold(0.3), "keep_scale": 1.0 / 0.7, "site": 2}

    def entry(kernel: Any, launch: dict[str, int], length: int, tensors: int, products: int) -> Compiled:
        given = {**rows, **others, **strides, **numbers, **shape, "PRECISION": precision, **launch}
        name = f"{dtype} {precision if dtype == torch.float32 else ''}".strip().removeprefix("torch.")
        return Compiled(
            kernel,
            f"{name}, 64 x {length}, 4 heads of {width}",
            {name: given[name] for name in kernel.arg_names},
            bytes=64 * length * 4 * width * dtype.itemsize * tensors,
            flops=64 * length * length * 4 * width * products,
            num_warps=launch.get("num_warps", 4),
            num_stages=launch.get("num_stages", 3),
            matrix=matrix if products else None,
            seed=width == 32 and length == 200,
        )

    lengths = [n for n in (16, 32, 64, 128) if n <= config.one_tile_forward]
    entries = [entry(_forward_tile, one_tile(n, config.rows_per_warp), n, 4, 2) for n in lengths]
    lengths = [n for n in (16, 32, 64, 128) if n <= config.one_tile_backward]
    entries += [entry(_backward_tile, one_tile(n, config.rows_per_warp), n, 7, 5) for n in lengths]
    entries += [
        entry(_forward_blocks, by_blocks(config.forward), 200, 4, 2),
        entry(_backward_queries, by_blocks(config.backward_queries), 200, 6, 3),
        entry(_backward_keys, by_blocks(config.backward_keys), 200, 6, 4),
    ]
    if way != "tf32":  # the last query multiplies in float32 always
        entries += [entry(_last_forward, {"KEYS": LAST_KEYS}, 200, 2, 0)]
        entries += [entry(_last_backward, {"KEYS": LAST_KEYS}, 200, 4, 0)]
    return entries


_KINDS = ((torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "half"), (torch.float16, "half"))
# Every width of a head that has launches of its own; that of 8 has columns to mask.
COMPILED = [entry for dtype, way in _KINDS for width in (32, 64, 128, 8) for entry in _compiled(dtype, way, width)]
