"""Launches of kernels/caser_windows.py."""

from __future__ import annotations

from typing import Any

import torch

from ..caser_common import Shape
from ..caser_windows import _convolve, _histories, _rest
from ..caser_windows_backward import (
    _by_slot,
    _distances,
    _finish_filters,
    _finish_x,
    _grad_filters,
    _grad_vertical,
    _grad_x,
)
from . import Compiled, distinct, pointer


def _compiled(dtype: torch.dtype, precision: str, length: int, n_h: int, n_v: int, d: int, rows: int) -> list[Compiled]:
    """Every kernel for ``rows`` rows in sequences of 100, with a history that ends after each."""
    shape = Shape(length, n_h, n_v, d, precision, dtype.itemsize)
    count = rows // 100
    slots, taps = rows + count, length * (length + 1) // 2 * n_h
    kind, size = pointer(dtype), dtype.itemsize
    names = ("x", "weight_h", "bias_h", "weight_v", "bias_v", "padding_row", "out", "grad", "grad_x", "grad_weight")
    arguments = dict.fromkeys(names, kind)
    names = ("rest", "pooled", "partial", "grad_slots", "sums", "grad_padding", "padded")
    arguments |= dict.fromkeys(names, pointer(torch.float32))
    names = ("position", "positions", "position_out", "distance", "offsets")
    arguments |= dict.fromkeys(names, pointer(torch.int32))
    arguments |= dict.fromkeys(("stops", "order", "bounds"), pointer(torch.int64))
    numbers: dict[str, Any] = {
        "rows": rows,
        "size": rows,
        "slots": slots,
        "halvings": 4,
        "blocks": 5,
        "tiles": 1,
        "chunks": 32,
    }
    convolution = 2 * rows * taps * d
    weights, table, maxima = taps * d * size, rows * d * size, slots * shape.lanes * 8
    upstream = rows * (shape.skipped + shape.lanes)
    matrix = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, {"tf32": "tf32"}.get(precision))
    vertical = 2 * rows * n_v * length * d
    launches = (
        (_rest, shape.rest, weights, 2 * taps * d, None),
        (_convolve, shape.convolve(shape.shifted), table + weights + maxima, convolution, matrix),
        (_histories, {**shape.histories, "COLUMNS": 128}, table + maxima + upstream * size, vertical, None),
        (_by_slot, shape.by_slot, upstream * (size + 4) + maxima, 0, None),
        (_grad_x, shape.grad_x(shape.shifted), maxima + table + weights, convolution, matrix),
        (_finish_x, shape.finish_x, 2 * table + rows * shape.skipped * 4, vertical, None),
        (_grad_filters, shape.grad_filters(shape.gathered), maxima + table + weights, convolution, matrix),
        (_distances, shape.distances, maxima, 0, None),
        (_finish_filters, shape.finish_filters, 2 * weights, 0, None),
        (_grad_vertical, shape.grad_vertical, table + rows * shape.skipped * size, vertical, None),
    )
    words = f"{dtype}{'' if size == 2 else ' ' + precision}, L {length}, n_h {n_h}, n_v {n_v}, d {d}, {rows} rows"
    entries = []
    for kernel, constants, moved, flops, products in launches:
        chosen = dict(constants)
        warps = chosen.pop("num_warps", 4)
        # In the vertical kernels and _by_slot the sequences are those of the histories, elsewhere a number.
        per_history = "stops" in kernel.arg_names
        known = {**arguments, **numbers, "sequences": pointer(torch.int64) if per_history else count, **chosen}
        entries.append(
            Compiled(
                kernel,
                words.removeprefix("torch."),
                {name: known[name] for name in kernel.arg_names},
                bytes=moved,
                flops=flops,
                num_warps=warps,
                matrix=products,
                seed=(length, n_h, n_v, d) == (20, 8, 4, 64),
            )
        )
    return entries


_KINDS = ((torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee"), (torch.float16, "ieee"))
# The seed's; rows of all distances in one span of 128; several spans; few filters and narrow rows.
_SHAPES = ((20, 8, 4, 64), (50, 8, 4, 64), (200, 8, 4, 64), (5, 2, 1, 24))
COMPILED = distinct(
    (entry for shape in _SHAPES for dtype, way in _KINDS for entry in _compiled(dtype, way, *shape, 2048)),
    sizes=frozenset(("LENGTH", "FILTERS", "D", "NV", "SKIPPED")),
)
