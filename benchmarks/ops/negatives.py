"""sample_negatives and sample_shared_negatives beside vectorised rejection in PyTorch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastseq.data.negatives import alias_table, integer_masses
from fastseq.ops import make_rng, sample_negatives, sample_shared_negatives

from .case import BATCHES, BEAUTY_ITEMS, EVENTS, FORWARD, LARGE_ITEMS, ML_1M_ITEMS, Case, Spec

USERS, ITEMS, SEEN = 6040, ML_1M_ITEMS, 160  # about ml-1m
NO_COMPILE = "rejection repeats as long as the data wants: torch.compile breaks the graph at every round"


def per_target(
    device: torch.device, k: int, rows: int = EVENTS, n_users: int = USERS, n_items: int = ITEMS, length: int = SEEN
) -> Case:
    seen = torch.rand(n_users, n_items, device=device).topk(length).indices.sort().values
    offsets = torch.arange(n_users + 1, device=device) * length
    users = torch.randint(0, n_users, (rows,), device=device)
    positives, flat, rng = seen[users, 0], seen.flatten(), make_rng(1, 2, device)
    pairs = (torch.arange(n_users, device=device)[:, None] * n_items + seen).flatten()  # ascending

    def fastseq(p: float) -> Tensor:
        return sample_negatives(users, positives, offsets, flat, k, n_items, rng)

    def is_seen(drawn: Tensor) -> Tensor:
        wanted = users[:, None] * n_items + drawn
        return pairs[torch.searchsorted(pairs, wanted).clamp(max=len(pairs) - 1)] == wanted

    def eager(p: float) -> Tensor:
        drawn = torch.randint(0, n_items, (rows, k), device=device)
        while (bad := is_seen(drawn)).any():
            drawn[bad] = torch.randint(0, n_items, (int(bad.sum()),), device=device)
        return drawn

    return Case(
        "sample_negatives", f"uniform, {rows} targets, {k} each", {"fastseq": fastseq, "eager": eager}, [],
        valid=lambda drawn: not is_seen(drawn).any(), no_compile=NO_COMPILE,
        indices=8 * rows * (2 + k),  # users, targets, negatives; which lists are read is the data's
    )  # fmt: skip


def shared(device: torch.device, kind: str, size: int = 1024, n_items: int = BEAUTY_ITEMS) -> Case:
    weight, rng = torch.rand(n_items, dtype=torch.float64) ** -0.5, make_rng(1, 2, device)  # a long tail
    table = alias_table(integer_masses(weight.numpy())) if kind == "popularity" else (None, None)
    probability, alias = (None if part is None else part.to(device) for part in table)
    weight = weight.to(device)

    def fastseq(p: float) -> Tensor:
        return sample_shared_negatives(size, n_items, rng, probability=probability, alias=alias)

    def eager(p: float) -> Tensor:
        if kind == "uniform":
            return torch.randint(0, n_items, (size,), device=device)
        return torch.multinomial(weight, size, replacement=True)

    return Case(
        "sample_shared_negatives", f"{kind}, {size} of {n_items}", {"fastseq": fastseq, "eager": eager}, [],
        valid=lambda drawn: len(drawn) == size, indices=8 * size,
        no_compile="one call of PyTorch's sampler, which torch.compile leaves as it is",
    )  # fmt: skip


def suite(device: str) -> list[Spec]:
    name, more, kinds = "sample_negatives", "sample_shared_negatives", ("uniform", "popularity")
    specs = [Spec(name, partial(per_target, k=k), ["int64"], [FORWARD]) for k in (1, 2, 64)]
    if device != "cpu":
        specs += [Spec(name, partial(per_target, k=k, rows=BATCHES[1]), ["int64"], [FORWARD]) for k in (1, 2, 64)]
        specs += [Spec(name, partial(per_target, k=1, rows=2048 * 200), ["int64"], [FORWARD])]
    specs += [Spec(more, partial(shared, kind=kind), ["int64"], [FORWARD]) for kind in kinds]
    if device == "cuda":  # multinomial takes up to 2^24 items, so V = 1M is comparable
        sizes = [Spec(more, partial(shared, kind=kind, n_items=LARGE_ITEMS), ["int64"], [FORWARD]) for kind in kinds]
        specs += sizes
    return specs


def tiny(device: torch.device) -> list[Case]:
    few = [per_target(device, 2, rows=5, n_users=4, n_items=12, length=3)]
    return few + [shared(device, kind, 6, 10) for kind in ("uniform", "popularity")]
