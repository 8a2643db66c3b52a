"""One training batch of jagged sequences."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass
class Packed:
    """A dataclass whose tensors, those among its fields that are some, are on one device and move in one copy."""

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return next(iter(self._tensors().values())).device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same on ``device``, moved in one copy; itself where it is there already.

        Args:
            device: where to. The tensors there are views of one buffer.
            non_blocking: from the CPU to a GPU: through pinned memory, and the host does not wait. PyTorch keeps the
                pinned memory until the copy has ended.
        """
        device = torch.device(device)
        if device == self.device:
            return self
        return self.unpack(
            self.pack(pinned=non_blocking and device.type == "cuda").to(device, non_blocking=non_blocking)
        )

    def pack(self, pinned: bool = False) -> Tensor:
        """All tensors, one after another, in a new buffer where they are (``pinned``: in page-locked memory): uint8."""
        size = sum(map(_room, self._tensors().values()))
        buffer = torch.empty(size, dtype=torch.uint8, device=self.device, pin_memory=pinned)
        for name, piece in self.unpack(buffer)._tensors().items():
            piece.copy_(getattr(self, name))
        return buffer

    def unpack(self, buffer: Tensor) -> Self:
        """The same with tensors that are views of ``buffer``, laid out as ``pack`` lays this one out."""
        tensors = self._tensors()
        pieces = buffer.split([_room(tensor) for tensor in tensors.values()])
        views = {
            name: piece[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for (name, tensor), piece in zip(tensors.items(), pieces, strict=True)
        }
        return replace(self, **views)

    def _tensors(self) -> dict[str, Tensor]:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if isinstance(value, Tensor)}


@dataclass
class JaggedBatch(Packed):
    """``B`` sequences of ``T`` events in all, ``N`` of which have a target that counts; nothing is padded.

    Attributes:
        items: int64 [T], the input events, sequence after sequence.
        offsets: int32 [B + 1], sequence ``b`` is ``items[offsets[b]:offsets[b + 1]]``. None is empty, but
            some of the unused ones at the end, which there are where ``divisor`` is given.
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
            history, summed over the targets; a tensor where ``divisor`` is given.
        n_targets_global: targets of this optimizer step over all ranks: what a sum of losses is divided by.
        last_only: whether exactly the last row of every sequence counts, as in per-target batches (N = B).
        hidden: bool [T], the events that attention must not see, as padding ids inside a history; None: there are none.
        rng: int64 [2], (seed, step) of this step's dropout, another one on each rank; None: the model has its own.
        target_users: int64 [N], the user of each target; None: not made yet, see ``users_of_targets``.
        item_rows, user_rows: float [R, d], the vectors that items, targets, negatives and l2_items, or target_users,
            number, in the order of their tables; the last item is padding. None: the tables themselves.
        divisor: int64 [], ``n_targets_global`` on the device, where that is 0 and some targets are unused: -100.
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
    l2_padding: int | Tensor = 0
    n_targets_global: int = 0
    last_only: bool = False
    hidden: Tensor | None = None
    rng: Tensor | None = None
    target_users: Tensor | None = None
    item_rows: Tensor | None = None
    user_rows: Tensor | None = None
    divisor: Tensor | None = None

    @property
    def n_targets(self) -> int:
        """Targets in this batch (on this rank): N."""
        return self.targets.shape[0]

    @property
    def users_of_targets(self) -> Tensor:
        """int64 [N], the user of each target."""
        return self.users.index_select(0, self.target_sequences) if self.target_users is None else self.target_users


def _room(tensor: Tensor) -> int:
    """Bytes of a tensor in a packed batch: kernels read whole vectors of 16 bytes where an address divides by it."""
    return -(-tensor.nbytes // 16) * 16
