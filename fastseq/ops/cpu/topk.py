"""The best unseen items on the CPU, by csrc/topk.cpp: scores are compared as they are made and never stored."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from ..topk import check_ends
from ._arrays import call, optional, prepared

USERS_AT_ONCE = 512  # which stay in the second cache while the items go by
PART_BYTES = 64 << 20  # of items that are copied, since they are not float32 or float64 side by side


def topk(
    h: Tensor,
    weight: Tensor,
    k: int,
    bias: Tensor | None,
    seen_offsets: Tensor | None,
    seen_items: Tensor | None,
    seen_sorted: bool,
    codes: Tensor | None,
    scales: Tensor | None,
) -> tuple[Tensor, Tensor]:
    users, shift = prepared(h), optional(bias)
    n_users, n_items = users.shape[0], weight.shape[0]
    if seen_offsets is None or seen_items is None:
        starts, seen = torch.zeros(n_users + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    else:
        starts, seen = seen_offsets.to(torch.int64).contiguous(), seen_items.contiguous()
    check_ends(starts, seen)
    best = torch.full((n_users, k), float("-inf"), dtype=users.dtype)
    ids = torch.full((n_users, k), -1, dtype=torch.int64)
    as_it_lies = weight.dtype == users.dtype and weight.is_contiguous()
    part = n_items if as_it_lies else PART_BYTES // (users.element_size() * max(1, weight.shape[1]))
    for item in range(0, n_items, max(1, part)):
        columns = slice(item, item + max(1, part))
        items = prepared(weight[columns])
        by_item = [None if x is None else x[columns] for x in (shift, codes, scales)]
        for first in range(0, n_users, USERS_AT_ONCE):
            rows = slice(first, first + USERS_AT_ONCE)
            row_starts = starts[first : first + USERS_AT_ONCE + 1]
            call(_C.topk, users[rows], items, *by_item, row_starts, seen, best[rows], ids[rows], first, item, n_items)
    return best.to(h.dtype), ids
