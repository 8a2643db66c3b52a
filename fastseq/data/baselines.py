"""The baseline that counts: popularity, a scorer for ``training.evaluation.evaluate``."""

from __future__ import annotations

import torch
from torch import Tensor

from .split import Split


class Popularity:
    """Scores an item by its training events, whoever asks.

    Args:
        split: whose training part is counted.
    """

    def __init__(self, split: Split) -> None:
        self.counts = torch.from_numpy(split.item_counts())

    def score(self, users: Tensor, items: Tensor, offsets: Tensor) -> Tensor:
        """Scores float32 [B, n_items] for B histories ``items`` [T], ``offsets`` [B + 1]; the same row for all."""
        return self.counts.float().expand(len(offsets) - 1, -1)
