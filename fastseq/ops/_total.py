"""Sums with the same bits for any number of threads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SPAN = 1024


def total(rows: Tensor) -> Tensor:
    """Σ rows of a [N]. torch divides a sum of more than 32,768 numbers among its threads; here spans come first."""
    if rows.device.type != "cpu":
        return rows.sum()
    return F.pad(rows, (0, -rows.shape[0] % SPAN)).view((rows.shape[0] + SPAN - 1) // SPAN, SPAN).sum(1).sum()
