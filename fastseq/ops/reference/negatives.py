"""Plain twin of fastseq/ops/negatives.py: one target and one negative at a time."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from ..negatives import ATTEMPTS, WORDS_PER_NEGATIVE, nothing_left
from ..philox import SITE_NEGATIVES, SITE_SHARED_NEGATIVES
from ..sampled_loss import IGNORED
from .philox import philox


def _words(rng: Tensor, count: int, row: int, site: int) -> list[int]:
    """Words 0 ... count - 1 of a row."""
    blocks = torch.arange((count + 3) // 4)
    words = philox(rng.cpu(), blocks, torch.tensor(row & 0xFFFFFFFF), torch.tensor(site))
    return words.flatten()[:count].tolist()


def _pick(probability: list[int], alias: list[int], column: int, fraction: int) -> int:
    item = (column * len(alias)) >> 32
    return item if fraction < probability[item] else alias[item]


def _masses(probability: list[int], alias: list[int]) -> list[int]:
    """The integer mass of each item; they sum to n_items * 2^32."""
    masses = list(probability)
    for own, other in zip(probability, alias, strict=True):
        masses[other] += 2**32 - own
    return masses


def sample_negatives(
    users: Tensor, positives: Tensor, seen_offsets: Tensor, seen_items: Tensor, k: int, n_items: int, rng: Tensor,
    probability: Tensor | None, alias: Tensor | None, first: int, threads: int,
) -> Tensor:  # fmt: skip
    offsets, items = seen_offsets.tolist(), seen_items.cpu().numpy()
    result = np.empty((users.shape[0], k), np.int64)
    if k == 0:
        return torch.from_numpy(result).to(users.device)
    for name, ids, end in (("users", users, len(offsets) - 1), ("positives", positives, n_items)):
        for n, value in enumerate(ids.tolist()):
            if not (0 <= value < end or (ids is positives and value == IGNORED)):
                raise ValueError(f"{name}[{n}] is {value}, expected 0 <= value < {end}")
    table = None if probability is None or alias is None else (probability.tolist(), alias.tolist())
    masses = None if table is None else _masses(*table)
    for n, (user, positive) in enumerate(zip(users.tolist(), positives.tolist(), strict=True)):
        if positive == IGNORED:
            result[n] = 0
            continue
        excluded = np.union1d(items[offsets[user] : offsets[user + 1]], [positive])
        if table is None:
            left = n_items - len(excluded)
            if left == 0:
                raise nothing_left(n, user, n_items)
            words = np.array(_words(rng, k, first + n, SITE_NEGATIVES), np.uint64)
            ranks = (words * np.uint64(left) >> np.uint64(32)).astype(np.int64)
            # Item excluded[i] has excluded[i] - i items left below it.
            result[n] = ranks + np.searchsorted(excluded - np.arange(len(excluded)), ranks, side="right")
            continue
        assert masses is not None
        avoid = set(excluded.tolist())
        words_of_all = _words(rng, k * WORDS_PER_NEGATIVE, first + n, SITE_NEGATIVES)
        for j in range(k):
            word = words_of_all[j * WORDS_PER_NEGATIVE : (j + 1) * WORDS_PER_NEGATIVE]
            attempts = (_pick(*table, word[2 * a], word[2 * a + 1]) for a in range(ATTEMPTS))
            item = next((i for i in attempts if i not in avoid), None)
            if item is None:
                cumulative = list(accumulate(0 if i in avoid else mass for i, mass in enumerate(masses)))
                if cumulative[-1] == 0:
                    raise nothing_left(n, user, n_items)
                item = bisect_right(cumulative, ((word[62] << 32 | word[63]) * cumulative[-1]) >> 64)
            result[n, j] = item
    return torch.from_numpy(result).to(users.device)


def sample_shared_negatives(
    size: int, n_items: int, rng: Tensor, probability: Tensor | None, alias: Tensor | None, threads: int
) -> Tensor:
    if probability is None or alias is None:
        drawn = [(word * n_items) >> 32 for word in _words(rng, size, 0, SITE_SHARED_NEGATIVES)]
    else:
        table = (probability.tolist(), alias.tolist())
        word = _words(rng, 2 * size, 0, SITE_SHARED_NEGATIVES)
        drawn = [_pick(*table, word[2 * s], word[2 * s + 1]) for s in range(size)]
    return torch.tensor(drawn, dtype=torch.int64, device=rng.device)
