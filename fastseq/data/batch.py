"""One training batch of jagged sequences."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class JaggedBatch:
    """``B`` sequences of ``T`` events in all, ``N`` of which have a target that counts; nothing is padded.

    Attributes:
        items: int64 [T], the input events, sequence after sequence.
        offsets: int32 [B + 1], sequence ``b`` is ``items[offsets[b]:offsets[b + 1]]``. No sequence is empty.
        users: int64 [B], the user of each sequence.
        max_len: length of the longest sequence here; 0 in an empty batch.
        rows: int64 [N], ascending, the rows of ``items`` whose target counts; None: all of them, in order.
        targets: int64 [N], the next item of each such row.
        target_sequences: int64 [N], ascending, the sequence of each target.
        negatives: int64 [N, K], or [S] shared by all targets, or None.
        log_q: float32, shaped as ``negatives``: the log-probability that one draw gives that item; None unless asked.
        l2_items: int64 [R], the events in the histories of the targets, which may begin before the sequence does
            (an event stands once per sequence whose targets need it); None without an L2 term.
        l2_weights: float32 [R], how many targets of that sequence have the event in their history.
        l2_padding: how many padding cells WarpRec counts besides: ``max_len`` of the loader minus the length of the
            history, summed over the targets.
        n_targets_global: targets of this optimizer step over all ranks: what a sum of losses is divided by.
        last_only: whether exactly the last row of every sequence counts, as in per-target batches (N = B).
        hidden: bool [T], the events that attention must not see, as padding ids inside a history; None: there are none.
    """

    items: Tensor
    offsets: Tensor
    users: Tensor
    max_len: int
    rows: Tensor | None
    targets: Tensor
    target_sequences: Tensor
    negatives: Tensor | None = None
    log_q: Tensor | None = None
    l2_items: Tensor | None = None
    l2_weights: Tensor | None = None
    l2_padding: int = 0
    n_targets_global: int = 0
    last_only: bool = False
    hidden: Tensor | None = None

    @property
    def n_targets(self) -> int:
        """Targets in this batch (on this rank): N."""
        return self.targets.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> JaggedBatch:
        """The same batch on ``device``; itself where it is there already."""
        if torch.device(device) == self.items.device:
            return self
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value
        return JaggedBatch(**moved)
