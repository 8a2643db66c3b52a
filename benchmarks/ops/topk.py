"""topk beside what PyTorch offers: users ranked over the whole catalogue, seen items left out.

eager  chunks of scores, seen items set to -inf by index, torch.topk
codes  topk by 8-bit codes of the items, made before: for few users on the CPU
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fastseq.ops import item_codes, topk
from fastseq.ops.topk import FEW_USERS

from .case import FORWARD, ITEMS, PRODUCTS, WIDTH, Case, Cases

CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 4 << 30}  # of scores: what stays in the cache; what memory has to spare
# data, users of one batch of evaluation, seen items of each user
SHAPES = [("ml-1m", 256, 160), ("beauty", 256, 8), ("beauty", 1, 8)]
LARGE_ITEMS = 500_000  # a permutation of so many for each user takes seconds
CPU_LARGE = [("V=1M", 256, 50), ("V=1M", 8, 50), ("V=1M", 1, 50)]
LARGE = [("ml-1m", 2048, 160), ("beauty", 2048, 8), ("V=1M", 2048, 50), ("V=1M", 1, 50)]


def as_good(seen: Tensor, results: Sequence[Tensor], expected: Sequence[Tensor], leaves: Sequence[Tensor]) -> bool:
    """The same scores rank for rank, up to rounding: near ties may change places, seen items may not appear."""
    h, weight = (x.double() for x in leaves)
    (ours,), (best,) = results, expected
    scores, highest = (torch.einsum("ud,ukd->uk", h, weight[ids]) for ids in (ours, best))
    limit = 4e-2 if leaves[0].dtype == torch.bfloat16 else 4e-3  # of rounded scores; of tf32's products
    near = (scores - highest).abs() <= limit * h.norm(dim=1, keepdim=True)
    return bool(near.all()) and not bool((ours[:, :, None] == seen.view(len(ours), 1, -1)).any())


def case(
    device: torch.device, data: str, users: int, length: int, items: int = 0, k: int = 10, width: int = WIDTH
) -> Case:
    items = items or ITEMS[data]
    offsets = torch.arange(users + 1, device=device) * length
    if device.type == "cpu" and items < LARGE_ITEMS:
        seen = torch.stack([torch.randperm(items)[:length] for _ in range(users)]).flatten()
    else:  # strides that meet no item twice
        start, step = torch.randint(0, items, (users, 1), device=device), max(1, items // length)
        seen = ((start + step * torch.arange(length, device=device)) % items).flatten()
    chunk = max(1, CHUNK_BYTES["cpu" if device.type == "cpu" else "cuda"] // (items * 4))
    rows = torch.arange(min(chunk, users), device=device).repeat_interleave(length)

    def fastseq(p: float, h: Tensor, weight: Tensor) -> Tensor:
        return topk(h, weight, k, seen_offsets=offsets, seen_items=seen)[1]

    def eager(p: float, h: Tensor, weight: Tensor) -> Tensor:
        ids = []
        for first in range(0, users, chunk):
            stop = min(first + chunk, users)
            scores = h[first:stop] @ weight.t()
            scores[rows[: (stop - first) * length], seen[first * length : stop * length]] = float("-inf")
            ids.append(scores.topk(k).indices)
        return torch.cat(ids)

    leaves = [torch.randn(users, width, device=device), torch.randn(items, width, device=device)]
    functions = {"fastseq": fastseq, "eager": eager}
    if device.type == "cpu" and users <= FEW_USERS:
        codes = item_codes(leaves[1])

        def by_codes(p: float, h: Tensor, weight: Tensor) -> Tensor:
            return topk(h, weight, k, seen_offsets=offsets, seen_items=seen, codes=codes)[1]

        functions["codes"] = by_codes
    return Case(
        "topk", f"{data}, {users} user{'s' * (users > 1)}, {items} items, top {k}",
        functions, leaves, agree=None if device.type == "cpu" else partial(as_good, seen), products=True,
        indices=8 * users * (length + k), flops=(2 * users * items * width, 0),
    )  # fmt: skip


CASES = [
    Cases(
        "topk", case, "data users length", cpu=SHAPES + CPU_LARGE, cuda=SHAPES + LARGE,
        tiny=[("tiny", 3, 4, 20, 5, 16)], cuda_dtypes=PRODUCTS, directions=[FORWARD],
    )
]  # fmt: skip
