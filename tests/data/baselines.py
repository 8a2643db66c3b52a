"""What the tests compare models and data with: a first-order Markov chain, and data whose order tells nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastseq.data.interactions import Interactions
from fastseq.data.split import Split


class Markov:
    """Scores an item by how often it came right after the last one of the history, then by popularity.

    The score is ``transitions[last, item] + events[item] / (all events + 1)``: popularity, always below 1, decides
    among items with equal transitions, and alone after an item that nothing followed or an empty history.

    Args:
        split: whose training part is counted.
    """

    def __init__(self, split: Split) -> None:
        data = split.interactions
        inside = np.arange(data.n_events) < np.repeat(split.train_stop, data.lengths)
        follows = np.ones(data.n_events, np.bool_)  # events that are not their user's first
        follows[data.offsets[:-1]] = False
        second = np.flatnonzero(inside & follows)
        pairs, counts = np.unique(data.items[second - 1] * data.n_items + data.items[second], return_counts=True)
        starts = np.searchsorted(pairs, np.arange(data.n_items + 1) * data.n_items)
        self.starts = torch.from_numpy(starts)  # transitions from item i are rows starts[i]:starts[i + 1] of:
        self.successors = torch.from_numpy(pairs % data.n_items)
        self.counts = torch.from_numpy(counts).float()
        events = torch.from_numpy(split.item_counts()).float()
        self.popularity = events / (events.sum() + 1)

    def score(self, users: Tensor, items: Tensor, offsets: Tensor) -> Tensor:
        """Scores float32 [B, n_items] for B histories ``items`` [T], ``offsets`` [B + 1]."""
        scores = self.popularity.repeat(len(offsets) - 1, 1)
        known = (offsets[1:] > offsets[:-1]).nonzero().flatten()
        last = items[offsets[1:][known].long() - 1]
        start, count = self.starts[last], self.starts[last + 1] - self.starts[last]
        rows = known.repeat_interleave(count)
        cells = torch.arange(len(rows)) + (start - count.cumsum(0) + count).repeat_interleave(count)
        scores[rows, self.successors[cells]] += self.counts[cells]
        return scores


def shuffled(interactions: Interactions, seed: int = 0) -> Interactions:
    """The control: every user's items in random order (times stay where they are), so order tells nothing."""
    keys = np.random.default_rng(seed).random(interactions.n_events)
    order = np.lexsort((keys, interactions.event_users))
    return Interactions(
        interactions.items[order],
        interactions.offsets,
        interactions.user_ids,
        interactions.item_ids,
        interactions.timestamps,
        interactions.filters,
    )
