"""Negative sampling on the CPU: csrc/negatives.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from .. import _checks
from ..negatives import check_ascending, nothing_left
from ..sampled_loss import IGNORED
from ._arrays import call, optional, seed_and_step


def sample_negatives(
    users: Tensor, positives: Tensor, seen_offsets: Tensor, seen_items: Tensor, k: int, n_items: int, rng: Tensor,
    probability: Tensor | None, alias: Tensor | None, first: int, threads: int,
) -> Tensor:  # fmt: skip
    unused = positives == IGNORED
    if unused.any():
        counted = (~unused).nonzero()[:1, 0]
        if not len(counted):
            return torch.zeros(users.shape[0], k, dtype=torch.int64)
        # Something is drawn in place of those, for the first that counts.
        users, positives = (torch.where(unused, ids[counted], ids) for ids in (users, positives))
        seen = seen_offsets, seen_items
        drawn = sample_negatives(users, positives, *seen, k, n_items, rng, probability, alias, first, threads)
        return drawn.masked_fill_(unused[:, None], 0)
    result = torch.empty((users.shape[0], k), dtype=torch.int64)
    failed = call(
        _C.sample_negatives, *(ids.contiguous() for ids in (users, positives, seen_offsets, seen_items)), n_items,
        *seed_and_step(rng), optional(probability, torch.int64), optional(alias, torch.int64), first, result,
        threads=threads,
    )  # fmt: skip
    if _checks.demanded():
        check_ascending(seen_offsets, seen_items)
    if failed >= 0:
        raise nothing_left(failed, int(users[failed]), n_items)
    return result


def sample_shared_negatives(
    size: int, n_items: int, rng: Tensor, probability: Tensor | None, alias: Tensor | None, threads: int
) -> Tensor:
    result = torch.empty(size, dtype=torch.int64)
    table = optional(probability, torch.int64), optional(alias, torch.int64)
    call(_C.sample_shared_negatives, n_items, *seed_and_step(rng), *table, result, threads=threads)
    return result
