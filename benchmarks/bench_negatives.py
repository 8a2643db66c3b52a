"""sample_negatives on the CPU beside vectorised rejection in PyTorch: uniform items that a user has not seen.

pytest benchmarks/bench_negatives.py --benchmark-only --benchmark-group-by=group
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_bench import IMPLEMENTATIONS, RNG
from torch import Tensor

from fastseq.ops import record_served, sample_negatives, set_backend

USERS, ITEMS, SEEN, TARGETS = 6040, 3416, 160, 65_536  # about ml-1m


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("k", [1, 16])
def test_sample_negatives(benchmark: Any, k: int, implementation: str) -> None:
    seen = torch.rand(USERS, ITEMS).topk(SEEN).indices.sort().values
    offsets = torch.arange(USERS + 1) * SEEN
    users = torch.randint(0, USERS, (TARGETS,))
    positives = seen[users, 0]
    pairs = (torch.arange(USERS)[:, None] * ITEMS + seen).flatten()  # ascending

    def fastseq(count: int = TARGETS) -> Tensor:
        return sample_negatives(users[:count], positives[:count], offsets, seen.flatten(), k, ITEMS, RNG)

    def is_seen(drawn: Tensor) -> Tensor:
        wanted = users[: len(drawn), None] * ITEMS + drawn
        return pairs[torch.searchsorted(pairs, wanted).clamp(max=len(pairs) - 1)] == wanted

    def eager() -> Tensor:
        drawn = torch.randint(0, ITEMS, (TARGETS, k))
        while (bad := is_seen(drawn)).any():
            drawn[bad] = torch.randint(0, ITEMS, (int(bad.sum()),))
        return drawn

    with record_served() as served:
        some = fastseq(200)
    assert served == [("sample_negatives", "cpu")]
    with set_backend("reference"):
        assert torch.equal(some, fastseq(200))
    functions: dict[str, Callable[[], Tensor]] = {"fastseq": fastseq, "eager": eager}
    assert not is_seen(functions[implementation]()).any()
    benchmark.group = f"sample_negatives {TARGETS} targets, k={k}"
    benchmark.extra_info |= {"negatives": TARGETS * k, "threads": torch.get_num_threads()}
    benchmark(functions[implementation])
