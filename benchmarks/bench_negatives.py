"""sample_negatives and sample_shared_negatives on the CPU beside vectorised rejection in PyTorch.

pytest benchmarks/bench_negatives.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_bench import BEAUTY_ITEMS, EVENTS, IMPLEMENTATIONS, ML_1M_ITEMS, RNG, measure
from torch import Tensor

from fastseq.data.negatives import alias_table, integer_masses
from fastseq.ops import sample_negatives, sample_shared_negatives

USERS, ITEMS, SEEN = 6040, ML_1M_ITEMS, 160  # about ml-1m
NO_COMPILE = "rejection repeats as long as the data wants: torch.compile breaks the graph at every round"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("k", [1, 2, 64])
def test_sample_negatives(benchmark: Any, k: int, implementation: str) -> None:
    seen = torch.rand(USERS, ITEMS).topk(SEEN).indices.sort().values
    offsets, users = torch.arange(USERS + 1) * SEEN, torch.randint(0, USERS, (EVENTS,))
    positives, flat = seen[users, 0], seen.flatten()
    pairs = (torch.arange(USERS)[:, None] * ITEMS + seen).flatten()  # ascending

    def fastseq(p: float) -> Tensor:
        return sample_negatives(users, positives, offsets, flat, k, ITEMS, RNG)

    def is_seen(drawn: Tensor) -> Tensor:
        wanted = users[:, None] * ITEMS + drawn
        return pairs[torch.searchsorted(pairs, wanted).clamp(max=len(pairs) - 1)] == wanted

    def eager(p: float) -> Tensor:
        drawn = torch.randint(0, ITEMS, (EVENTS, k))
        while (bad := is_seen(drawn)).any():
            drawn[bad] = torch.randint(0, ITEMS, (int(bad.sum()),))
        return drawn

    measure(
        benchmark, implementation, {"fastseq": fastseq, "eager": eager}, [], op="sample_negatives",
        shape=f"uniform, {EVENTS} targets, {k} each", dtype="int64", valid=lambda drawn: not is_seen(drawn).any(),
        no_compile=NO_COMPILE,
    )  # fmt: skip


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_sample_shared_negatives(benchmark: Any, kind: str, implementation: str) -> None:
    size, weight = 1024, torch.rand(BEAUTY_ITEMS, dtype=torch.float64) ** -0.5  # a long tail
    probability, alias = alias_table(integer_masses(weight.numpy())) if kind == "popularity" else (None, None)

    def fastseq(p: float) -> Tensor:
        return sample_shared_negatives(size, BEAUTY_ITEMS, RNG, probability=probability, alias=alias)

    def eager(p: float) -> Tensor:
        if kind == "uniform":
            return torch.randint(0, BEAUTY_ITEMS, (size,))
        return torch.multinomial(weight, size, replacement=True)

    measure(
        benchmark, implementation, {"fastseq": fastseq, "eager": eager}, [], op="sample_shared_negatives",
        shape=f"{kind}, {size} of {BEAUTY_ITEMS}", dtype="int64", valid=lambda drawn: len(drawn) == size,
        no_compile="one call of PyTorch's sampler, which torch.compile leaves as it is",
    )  # fmt: skip
