"""Launches of kernels/negatives.py."""

from __future__ import annotations

from typing import Any

import torch

from fastseq.ops.philox import SITE_SHARED_NEGATIVES

from ..negatives import TILE, WALK_DRAWS, WALK_ITEMS, WARPS, _complement, _shared, _tile, _uniform, _weighted
from . import Compiled, pointer


def _compiled(kernel: Any, name: str, constants: dict[str, Any], k: int, moved: int, warps: int) -> Compiled:
    tensors = ("users", "positives", "seen_offsets", "seen_items", "rng", "probability", "alias", "masses", "out")
    given: dict[str, Any] = dict.fromkeys(tensors, pointer(torch.int64))
    given |= {"n_targets": 2048, "n_users": 6040, "n_items": 3416, "k": k, "first": 0, "size": 1024}
    given |= {"site": SITE_SHARED_NEGATIVES, **constants}
    arguments = {argument: given[argument] for argument in kernel.arg_names}
    return Compiled(kernel, name, arguments, bytes=moved, num_warps=warps, seed=k <= 2 and kernel is _uniform)


# The seeds' one and two negatives, 64, and shared ones. Bytes: ids in and out; the lists are what the data has.
COMPILED = [
    *(
        _compiled(kernel, f"2048 x {k}", _tile(k, TILE, least), k, 8 * 2048 * (k + 2), WARPS)
        for kernel, least in ((_uniform, 4), (_weighted, 1))
        for k in (1, 2, 64)
    ),
    _compiled(_complement, "2048 x 64", {"ITEMS": WALK_ITEMS, "DRAWS": WALK_DRAWS}, 64, 8 * 2048 * 64, 1),
    *(
        _compiled(_shared, f"1024, {name}", {"WEIGHTED": name == "weighted", "DRAWS": TILE}, 1024, 8 * 1024, WARPS)
        for name in ("uniform", "weighted")
    ),
]
