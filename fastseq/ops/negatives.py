"""Negative sampling: items a user has not interacted with, or a sample of the catalogue shared by a batch.

**Distribution.** Uniform over items, or a discrete distribution given as Walker's alias table in integers, so that
every machine draws the same items: column ``i`` of ``probability`` (int64, in units of 2^-32, 0 ... 2^32) says how much
of it holds item ``i``, the rest holds item ``alias[i]``. One draw takes column ``i`` uniformly, then one of the two.
``fastseq.data.negatives.alias_table`` builds the table.

**Random words** (Philox, fastseq/ops/philox.py). ``word(draw)`` is output ``draw % 4`` of the block with counter
``(draw // 4, first + n, step, SITE_NEGATIVES)`` for target ``n``, or ``(draw // 4, 0, step, SITE_SHARED_NEGATIVES)``.
A word ``w`` becomes a number below ``m`` as ``(w * m) >> 32``; its probabilities are equal to within ``m / 2^32`` of
their value.

========================  =====================================================================================
uniform, per target       Negative ``k`` takes word ``k``: a number ``r`` below the count of items that are neither
                          seen nor the positive, and gives the ``r``-th of those in the order of ids. Exact, with
                          no rejection, however many items the user has seen.
alias, per target         Negative ``k`` owns the words ``64 k ... 64 k + 63``. Attempt ``a`` of 31 takes the words
                          ``64 k + 2 a`` (column) and ``64 k + 2 a + 1`` (item if below ``probability``, else
                          alias); the first item neither seen nor the positive wins. If all fail, words 62 and 63
                          form ``u = word(62) * 2^32 + word(63)``, and the item is the first one whose cumulative
                          integer mass over the items left, in the order of ids, exceeds ``(u * total) >> 64``.
uniform, shared           Draw ``s`` takes word ``s``, a number below ``n_items``.
alias, shared             Draw ``s`` takes the words ``2 s`` (column) and ``2 s + 1``.
========================  =====================================================================================

So negative ``k`` depends on no other negative, nor on ``K``, the threads, or the targets beside it; and a worker that
holds part of a batch draws with ``first`` what one worker draws for all of it.

Source: Walker, "An efficient method for generating discrete random variables with general distributions", TOMS 1977;
tables by Vose, IEEE TSE 1991.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register
from .sampled_loss import IGNORED

ATTEMPTS = 31
WORDS_PER_NEGATIVE = 64


def _check_common(n_items: int, rng: Tensor, probability: Tensor | None, alias: Tensor | None) -> None:
    if not 1 <= n_items < 2**31:
        raise ValueError(f"n_items is {n_items}, expected 1 ... 2**31 - 1")
    if rng.dtype != torch.int64 or rng.shape != (2,):
        raise ValueError(f"rng is {rng.dtype} {list(rng.shape)}, expected torch.int64 [2]: (seed, step)")
    if (probability is None) != (alias is None):
        raise ValueError("probability and alias must both be given or both be None")
    for name, table in (("probability", probability), ("alias", alias)):
        if table is not None:
            _checks.ids(name, table, n_items)


def sample_negatives(
    users: Tensor,
    positives: Tensor,
    seen_offsets: Tensor,
    seen_items: Tensor,
    k: int,
    n_items: int,
    rng: Tensor,
    *,
    probability: Tensor | None = None,
    alias: Tensor | None = None,
    first: int = 0,
    threads: int = 0,
) -> Tensor:
    """Draws ``k`` items per target, with replacement: never one the user has seen, never the target itself.

    Args:
        users: int64 [N], an index into ``seen_offsets``, per target.
        positives: int64 [N], the target items; -100: a target that does not count, whose negatives are 0.
        seen_offsets: int64 [users + 1]; user ``u`` has seen ``seen_items[seen_offsets[u]:seen_offsets[u + 1]]``.
        seen_items: int64, strictly ascending within a user; C++ looks at all of them only with FASTSEQ_CHECK=1.
        k: negatives per target, at least 0.
        n_items: items in the catalogue, below 2^31.
        rng: int64 [2], (seed, step).
        probability, alias: int64 [n_items], the alias table; None draws uniformly.
        first: number of the first target in the whole batch, for a worker that holds a part of it.
        threads: threads to use on the CPU; 0 takes torch's setting. The result does not depend on it.

    Returns:
        int64 [N, k].

    Raises:
        ValueError: if an argument is malformed or out of range, or a user has no item left to draw. What only the data
            shows raises on the CPU; on a GPU, where that would wait for the device, such a target's negatives are -1
            (of which ``sampled_loss`` makes NaN).
    """
    _checks.ids("users", users)
    _checks.ids("positives", positives, users.shape[0])
    _checks.ids("seen_offsets", seen_offsets)
    _checks.ids("seen_items", seen_items)
    _check_common(n_items, rng, probability, alias)
    if not 0 <= k < 2**31 or first < 0 or threads < 0:
        raise ValueError(f"k is {k}, first is {first}, threads is {threads}: expected none below 0, and k below 2**31")
    return _sample_negatives(
        users, positives, seen_offsets, seen_items, k, n_items, rng, probability, alias, first, threads
    )


def sample_shared_negatives(
    size: int,
    n_items: int,
    rng: Tensor,
    *,
    probability: Tensor | None = None,
    alias: Tensor | None = None,
    threads: int = 0,
) -> Tensor:
    """Draws ``size`` items from the whole catalogue, with replacement, for all targets of a batch.

    Args:
        size: how many, at least 0.
        n_items, rng, probability, alias, threads: as of ``sample_negatives``.

    Returns:
        int64 [size].

    Raises:
        ValueError: if an argument is malformed or out of range.
    """
    _check_common(n_items, rng, probability, alias)
    if not 0 <= size < 2**31 or threads < 0:
        raise ValueError(f"size is {size}, threads is {threads}: expected none below 0, and size below 2**31")
    return _sample_shared_negatives(size, n_items, rng, probability, alias, threads)


def nothing_left(target: int, user: int, n_items: int) -> ValueError:
    """The error for a user who has seen everything that could be drawn."""
    return ValueError(
        f"user {user} (target {target}) has seen every one of the {n_items} items that could be drawn as a negative: "
        "leave this user out, draw shared negatives, or train without negatives (neg_samples: 0)"
    )


def _check_data(
    users: Tensor, positives: Tensor, seen_offsets: Tensor, seen_items: Tensor, k: int, n_items: int, rng: Tensor,
    probability: Tensor | None, alias: Tensor | None, *_: int,
) -> None:  # fmt: skip
    n_users, entries = seen_offsets.shape[0] - 1, seen_items.shape[0]
    _checks.in_range("users", users, n_users, f"0 <= value < {n_users}")
    counted = torch.where(positives == IGNORED, 0, positives)
    _checks.in_range("positives", counted, n_items, f"0 <= value < {n_items}")
    ends = seen_offsets[:-1], seen_offsets[1:]
    wrong = ((ends[0] < 0) | (ends[0] > ends[1]) | (ends[1] > entries)).nonzero()
    if wrong.shape[0]:
        u = int(wrong[0])
        problem = f"seen_offsets of user {u} are {int(seen_offsets[u])}, {int(seen_offsets[u + 1])}"
        raise ValueError(f"{problem}, expected 0 <= begin <= end <= {entries}")
    _checks.in_range("seen_items", seen_items, n_items, f"0 <= value < {n_items}")
    check_ascending(seen_offsets, seen_items)
    _check_table(n_items, probability, alias)


def check_ascending(seen_offsets: Tensor, seen_items: Tensor) -> None:
    """Raises ValueError unless each user's list is strictly ascending. It reads them all: for C++ only on demand."""
    entries = seen_items.shape[0]
    falls = seen_items.diff() <= 0
    edges = seen_offsets[(seen_offsets > 0) & (seen_offsets < entries)]
    falls[edges - 1] = False  # from one user's list to the next one's
    if (indices := falls.nonzero()).shape[0]:
        i = int(indices[0]) + 1
        user = int(torch.searchsorted(seen_offsets.contiguous(), i, right=True)) - 1
        problem = f"seen_items[{i}] is {int(seen_items[i])} after {int(seen_items[i - 1])}"
        raise ValueError(f"{problem}: those of user {user} must be strictly ascending")


def _check_table(n_items: int, probability: Tensor | None, alias: Tensor | None) -> None:
    if probability is not None and alias is not None:
        _checks.in_range("probability", probability, 2**32 + 1, "0 <= value < 4294967297")
        _checks.in_range("alias", alias, n_items, f"0 <= value < {n_items}")


def _check_shared_data(
    size: int, n_items: int, rng: Tensor, probability: Tensor | None, alias: Tensor | None, threads: int
) -> None:
    _check_table(n_items, probability, alias)


def _fake(users: Tensor, positives: Tensor, seen_offsets: Tensor, seen_items: Tensor, k: int, *_: Any) -> Tensor:
    return users.new_empty((users.shape[0], k))


def _fake_shared(size: int, n_items: int, rng: Tensor, *_: Any) -> Tensor:
    return rng.new_empty((size,))


_sample_negatives = register("sample_negatives", fake=_fake, check=_check_data)
_sample_shared_negatives = register("sample_shared_negatives", fake=_fake_shared, check=_check_shared_data)
