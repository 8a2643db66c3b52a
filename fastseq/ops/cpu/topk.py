"""The best unseen items on the CPU: tiles of scores, merged into one heap for each user by csrc/topk.cpp."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from fastseq import _C

from ..topk import check_ends
from ._arrays import call, optional, prepared, product

TILE_BYTES = 16 << 20  # of scores: still in cache when they are ranked
TILE_USERS = 512  # enough for the matrix product to run at full speed
FEW_USERS = 16  # whose scores are dot products (kFewRows in csrc/linear.cpp): reading the items binds them
FEWEST_PACKED = 64  # users from which packing the items pays; below, the users are the product's packed operand


def topk(
    h: Tensor,
    weight: Tensor,
    k: int,
    bias: Tensor | None,
    seen_offsets: Tensor | None,
    seen_items: Tensor | None,
    seen_sorted: bool,
) -> tuple[Tensor, Tensor]:
    users, items, shift = prepared(h), prepared(weight), optional(bias)
    if seen_offsets is None or seen_items is None:
        starts, seen = torch.zeros(h.shape[0] + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    else:
        starts, seen = seen_offsets.to(torch.int64).contiguous(), seen_items.contiguous()
    check_ends(starts, seen)
    best = torch.full((h.shape[0], k), float("-inf"), dtype=users.dtype)
    ids = torch.full((h.shape[0], k), -1, dtype=torch.int64)
    n_users, n_items = users.shape[0], items.shape[0]
    tile_users = max(1, min(n_users, TILE_USERS))
    tile_items = max(1, TILE_BYTES // (tile_users * users.element_size()))
    # Tiles as equal as can be: a last one of a few items would be added in another order, and equal items not tie.
    tiles = -(-n_items // tile_items)
    edges = [n_items * tile // tiles for tile in range(tiles + 1)] if tiles else [0]
    buffer = users.new_empty(tile_users * min(tile_items, n_items))
    for first in range(0, n_users, tile_users):
        rows = slice(first, min(first + tile_users, n_users))
        heaps = best[rows], ids[rows]
        row_starts = starts[first : rows.stop + 1]
        for item, stop in pairwise(edges):
            columns = slice(item, stop)
            shape = rows.stop - first, stop - item
            scores = buffer[: shape[0] * shape[1]].view(shape)
            bias_part = None if shift is None else shift[columns]
            if FEW_USERS < shape[0] < FEWEST_PACKED:
                scores.copy_(product(items[columns], users[rows]).t())
                scores += 0.0 if bias_part is None else bias_part
            else:
                product(users[rows], items[columns], bias_part, out=scores)
            call(_C.topk_merge, scores, row_starts, seen, *heaps, first, item, n_items)
        call(_C.topk_sort, *heaps)
    return best.to(h.dtype), ids
