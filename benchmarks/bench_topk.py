"""topk on the CPU beside what PyTorch offers: users ranked over the whole catalogue, seen items left out.

    pytest benchmarks/bench_topk.py --benchmark-only --benchmark-group-by=group

    fastseq   the op
    eager     chunks of at most 16 MB of scores, seen items set to -inf by index, torch.topk
    compiled  torch.compile of eager's chunk; only with FASTSEQ_BENCH_COMPILE=1

Every implementation must give the reference's ids before it is timed (scores without near ties). Threads:
OMP_NUM_THREADS.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq.ops import record_served, set_backend, topk

K, WIDTH = 10, 128
CHUNK_BYTES = 16 << 20
# users, items, seen items of each user
SHAPES = {"ml-1m": (2048, 3416, 160), "100k items": (256, 100_000, 50), "one user, 100k items": (1, 100_000, 50)}
TopK = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def fastseq(h: Tensor, weight: Tensor, offsets: Tensor, seen: Tensor) -> Tensor:
    return topk(h, weight, K, seen_offsets=offsets, seen_items=seen)[1]


def _chunk(h: Tensor, weight: Tensor, rows: Tensor, seen: Tensor) -> Tensor:
    scores = h @ weight.t()
    scores[rows, seen] = float("-inf")
    return scores.topk(K).indices


def _in_chunks(function: Callable[..., Tensor]) -> TopK:
    def run(h: Tensor, weight: Tensor, offsets: Tensor, seen: Tensor) -> Tensor:
        step = max(1, CHUNK_BYTES // (weight.shape[0] * 4))
        ids = []
        for first in range(0, h.shape[0], step):
            stop = min(first + step, h.shape[0])
            bounds = offsets[first : stop + 1]
            rows = torch.arange(stop - first).repeat_interleave(bounds.diff())
            ids.append(function(h[first:stop], weight, rows, seen[bounds[0] : bounds[-1]]))
        return torch.cat(ids)

    return run


IMPLEMENTATIONS: dict[str, TopK] = {"fastseq": fastseq, "eager": _in_chunks(_chunk)}
if os.environ.get("FASTSEQ_BENCH_COMPILE", "") not in ("", "0"):
    IMPLEMENTATIONS["compiled"] = _in_chunks(torch.compile(_chunk, dynamic=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_topk(benchmark: Any, shape: str, implementation: str) -> None:
    users, items, length = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(users, WIDTH, generator=generator)
    weight = torch.randn(items, WIDTH, generator=generator)
    offsets = torch.arange(users + 1) * length
    seen = torch.stack([torch.randperm(items, generator=generator)[:length] for _ in range(users)]).flatten()
    run = IMPLEMENTATIONS[implementation]
    some = min(users, 64)
    part = (h[:some], weight, offsets[: some + 1], seen[: some * length])
    with record_served() as served:
        found = run(*part)
    if implementation == "fastseq":
        assert served == [("topk", "cpu")]
    with set_backend("reference"):
        assert torch.equal(found, fastseq(*part))
    benchmark.group = f"{shape}: {users} users, {items} items, {length} seen"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark(run, h, weight, offsets, seen)
