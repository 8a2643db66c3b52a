"""topk on the CPU beside what PyTorch offers: users ranked over the whole catalogue, seen items left out.

pytest benchmarks/bench_topk.py --benchmark-only

eager  chunks of at most 16 MB of scores, seen items set to -inf by index, torch.topk
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_bench import BEAUTY_ITEMS, IMPLEMENTATIONS, ML_1M_ITEMS, WIDTH, measure
from torch import Tensor

from fastseq.ops import topk

K = 10
CHUNK_BYTES = 16 << 20
# users of one batch of evaluation, items, seen items of each user
SHAPES = {
    "ml-1m, 256 users": (256, ML_1M_ITEMS, 160),
    "beauty, 256 users": (256, BEAUTY_ITEMS, 8),
    "beauty, one user": (1, BEAUTY_ITEMS, 8),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_topk(benchmark: Any, shape: str, implementation: str) -> None:
    users, items, length = SHAPES[shape]
    offsets = torch.arange(users + 1) * length
    seen = torch.stack([torch.randperm(items)[:length] for _ in range(users)]).flatten()
    chunk = max(1, CHUNK_BYTES // (items * 4))
    rows = torch.arange(chunk).repeat_interleave(length)

    def fastseq(p: float, h: Tensor, weight: Tensor) -> Tensor:
        return topk(h, weight, K, seen_offsets=offsets, seen_items=seen)[1]

    def eager(p: float, h: Tensor, weight: Tensor) -> Tensor:
        ids = []
        for first in range(0, users, chunk):
            stop = min(first + chunk, users)
            scores = h[first:stop] @ weight.t()
            scores[rows[: (stop - first) * length], seen[first * length : stop * length]] = float("-inf")
            ids.append(scores.topk(K).indices)
        return torch.cat(ids)

    measure(
        benchmark, implementation, {"fastseq": fastseq, "eager": eager},
        [torch.randn(users, WIDTH), torch.randn(items, WIDTH)], op="topk", shape=f"{shape}, {items} items, top {K}",
    )  # fmt: skip
