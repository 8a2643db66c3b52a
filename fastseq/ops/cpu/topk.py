"""The best unseen items on the CPU: scores of a bounded chunk of users by BLAS, then csrc/topk.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import array, prepared

CHUNK_BYTES = 16 << 20  # of scores: small enough to stay in cache between the product and the selection


def topk(
    h: Tensor, weight: Tensor, k: int, bias: Tensor | None, seen_offsets: Tensor | None, seen_items: Tensor | None
) -> tuple[Tensor, Tensor]:
    users, items, offset = prepared(h), prepared(weight), None if bias is None else prepared(bias)
    if seen_offsets is None or seen_items is None:
        starts, seen = torch.zeros(h.shape[0] + 1, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    else:
        starts, seen = seen_offsets.to(torch.int64).contiguous(), seen_items.contiguous()
    if int(starts[0]) != 0 or int(starts[-1]) != seen.shape[0]:
        ends = f"starts at {int(starts[0])} and ends at {int(starts[-1])}"
        raise ValueError(f"seen_offsets {ends}, expected 0 and {seen.shape[0]}, the number of seen items")
    best = users.new_empty((h.shape[0], k))
    ids = torch.empty((h.shape[0], k), dtype=torch.int64)
    step = max(1, CHUNK_BYTES // max(1, items.shape[0] * items.element_size()))
    chunk = users.new_empty((min(step, h.shape[0]), items.shape[0]))
    for first in range(0, h.shape[0], step):
        stop = min(first + step, h.shape[0])
        scores = chunk[: stop - first]
        torch.mm(users[first:stop], items.t(), out=scores)
        if offset is not None:
            scores += offset
        _C.topk(
            array(scores),
            array(starts[first : stop + 1]),
            array(seen),
            array(best[first:stop]),
            array(ids[first:stop]),
            first,
            torch.get_num_threads(),
        )
    return best.to(h.dtype), ids
