"""Negative sampling on the CPU: csrc/negatives.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from .. import _checks
from ..negatives import check_ascending, nothing_left
from ._arrays import array, optional_array, seed_and_step


def sample_negatives(
    users: Tensor,
    positives: Tensor,
    seen_offsets: Tensor,
    seen_items: Tensor,
    k: int,
    n_items: int,
    rng: Tensor,
    probability: Tensor | None,
    alias: Tensor | None,
    first: int,
    threads: int,
) -> Tensor:
    result = torch.empty((users.shape[0], k), dtype=torch.int64)
    failed = _C.sample_negatives(
        array(users.contiguous()),
        array(positives.contiguous()),
        array(seen_offsets.contiguous()),
        array(seen_items.contiguous()),
        n_items,
        *seed_and_step(rng),
        optional_array(probability, torch.int64),
        optional_array(alias, torch.int64),
        first,
        array(result),
        threads or torch.get_num_threads(),
    )
    if _checks.demanded():
        check_ascending(seen_offsets, seen_items)
    if failed >= 0:
        raise nothing_left(failed, int(users[failed]), n_items)
    return result


def sample_shared_negatives(
    size: int, n_items: int, rng: Tensor, probability: Tensor | None, alias: Tensor | None, threads: int
) -> Tensor:
    result = torch.empty(size, dtype=torch.int64)
    _C.sample_shared_negatives(
        n_items,
        *seed_and_step(rng),
        optional_array(probability, torch.int64),
        optional_array(alias, torch.int64),
        array(result),
        threads or torch.get_num_threads(),
    )
    return result
