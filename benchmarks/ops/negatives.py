"""sample_negatives and sample_shared_negatives beside vectorised rejection in PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastseq.data.negatives import alias_table, integer_masses
from fastseq.ops import make_rng, sample_negatives, sample_shared_negatives

from .case import BATCHES, EVENTS, FORWARD, INT64, ITEMS, MANY, Case, Cases

USERS, SEEN = 6040, 160  # about ml-1m


def per_target(
    device: torch.device,
    k: int,
    rows: int = EVENTS,
    users: int = USERS,
    items: int = ITEMS["ml-1m"],
    length: int = SEEN,
) -> Case:
    seen = torch.rand(users, items, device=device).topk(length).indices.sort().values
    offsets = torch.arange(users + 1, device=device) * length
    user = torch.randint(0, users, (rows,), device=device)
    positives, flat, rng = seen[user, 0], seen.flatten(), make_rng(1, 2, device)
    pairs = (torch.arange(users, device=device)[:, None] * items + seen).flatten()  # ascending

    def is_seen(drawn: Tensor) -> Tensor:
        pair = user[:, None] * items + drawn
        return pairs[torch.searchsorted(pairs, pair).clamp(max=len(pairs) - 1)] == pair

    def eager(p: float) -> Tensor:
        drawn = torch.randint(0, items, (rows, k), device=device)
        while (bad := is_seen(drawn)).any():
            drawn[bad] = torch.randint(0, items, (int(bad.sum()),), device=device)
        return drawn

    return Case(
        "sample_negatives", f"uniform, {rows} targets, {k} each",
        {"fastseq": lambda p: sample_negatives(user, positives, offsets, flat, k, items, rng), "eager": eager}, [],
        valid=lambda drawn: not is_seen(drawn).any(),
        no_compile="rejection repeats as long as the data wants: torch.compile breaks the graph at every round",
        indices=8 * rows * (2 + k),  # users, targets, negatives; which lists are read is the data's
    )  # fmt: skip


def shared(device: torch.device, kind: str, size: int = 1024, items: int = ITEMS["beauty"]) -> Case:
    weight, rng = torch.rand(items, dtype=torch.float64) ** -0.5, make_rng(1, 2, device)  # a long tail
    table = alias_table(integer_masses(weight.numpy())) if kind == "popularity" else (None, None)
    probability, alias = (None if part is None else part.to(device) for part in table)
    weight = weight.to(device)

    def fastseq(p: float) -> Tensor:
        return sample_shared_negatives(size, items, rng, probability=probability, alias=alias)

    def eager(p: float) -> Tensor:
        if kind == "uniform":
            return torch.randint(0, items, (size,), device=device)
        return torch.multinomial(weight, size, replacement=True)

    return Case(
        "sample_shared_negatives", f"{kind}, {size} of {items}", {"fastseq": fastseq, "eager": eager}, [],
        valid=lambda drawn: len(drawn) == size, indices=8 * size,
        no_compile="one call of PyTorch's sampler, which torch.compile leaves as it is",
    )  # fmt: skip


# multinomial takes up to 2^24 items, so that a million are comparable
COMMON = [(kind, ITEMS[data]) for data in ("beauty", "V=1M") for kind in ("uniform", "popularity")]
INTEGERS: dict[str, Any] = {"dtypes": [INT64], "cuda_dtypes": [INT64], "directions": [FORWARD]}
CASES = [
    Cases(
        "sample_negatives", per_target, "k rows", cpu=[(k, EVENTS) for k in (1, 2, 64)],
        cuda=[*((k, rows) for rows in BATCHES for k in (1, 2, 64)), (1, MANY)], tiny=[(2, 5, 4, 12, 3)], **INTEGERS,
    ),
    Cases(
        "sample_shared_negatives", shared, "kind items", cpu=COMMON[:2], cuda=COMMON,
        tiny=[(kind, 6, 10) for kind in ("uniform", "popularity")], **INTEGERS,
    ),
]  # fmt: skip
