"""Small data sets for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastseq.data.ids import IdMap
from fastseq.data.interactions import Interactions
from fastseq.data.split import Split


def tape(histories: Sequence[Sequence[int]], n_items: int) -> Interactions:
    """Interactions with these item indices; raw ids are the indices."""
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64)
    items = np.array([item for history in histories for item in history], np.int64)
    return Interactions(items, offsets, IdMap(np.arange(len(histories))), IdMap(np.arange(n_items)))


def numbered(split: Split) -> Split:
    """The same split with the tape row of each event in place of its item, so that batches can be traced back."""
    data = split.interactions
    rows = np.split(np.arange(data.n_events), data.offsets[1:-1])
    return Split(tape([r.tolist() for r in rows], data.n_events), split.train_stop, split.validation_stop)


def random_tape(n_users: int, n_items: int, longest: int, seed: int = 0) -> Interactions:
    """Users with 0 ... longest events, items with Zipf popularity."""
    generator = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, n_items + 1)
    popularity /= popularity.sum()
    lengths = generator.integers(0, longest + 1, n_users)
    return tape([generator.choice(n_items, n, p=popularity).tolist() for n in lengths], n_items)
