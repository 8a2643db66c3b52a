"""Negative sampling on the CPU: csrc/negatives.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastseq import _C

from .. import _checks
from ..negatives import check_ascending, nothing_left
from ._arrays import array, seed_and_step


def _ids(x: Tensor | None) -> Any:
    return None if x is None else array(x.contiguous())


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
        _ids(users),
        _ids(positives),
        _ids(seen_offsets),
        _ids(seen_items),
        n_items,
        *seed_and_step(rng),
        _ids(probability),
        _ids(alias),
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
        _ids(probability),
        _ids(alias),
        array(result),
        threads or torch.get_num_threads(),
    )
    return result
