"""Training data on the device that trains: batches and negatives are made there, and no step copies anything to it.

Batches and draws are those of the ``Loader``, bit for bit. Their numbers lie in the device's memory too, so with sizes
that hold every batch (``Sizes``) one recorded CUDA graph makes any of them.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastseq.ops import gather_windows, make_rng

from .batch import JaggedBatch
from .ids import Int64Array
from .negatives import DeviceSampler

if TYPE_CHECKING:
    from .loader import Loader


class Sizes(NamedTuple):
    """Sizes of a batch, or those in which any of several batches has room (``fastseq.ops.gather_windows``)."""

    n_events: int
    n_sequences: int
    n_targets: int
    n_history: int


class ResidentData:
    """What a loader makes batches of, on a device.

    Args:
        loader: whose batches these are: its windows, seed, rank and sampler.
        device: where they are made.

    Attributes:
        longest: inputs of the longest window, of all epochs.
        whole: whether every input of every window has a target that counts; batches then have no ``rows``.
    """

    def __init__(self, loader: Loader, device: torch.device | str) -> None:
        self.loader, self.device = loader, torch.device(device)
        windows = loader.windows
        self.lengths = windows.stop - windows.start
        self.longest = int(self.lengths.max(initial=0))
        self.max_len = min(loader.max_len, self.longest)  # no history is longer, nor an unused sequence
        self.whole = bool((self.lengths == windows.n_targets).all())
        self.sampler = None if loader.sampler is None else DeviceSampler(loader.sampler, self.device)
        self.history: Int64Array | None = None  # of each window: events in the histories of its targets
        if loader.l2:
            begin = loader.offsets[windows.user]
            self.history = windows.stop - np.maximum(begin, windows.first_target - loader.max_len)
            # A target t with t - begin < max_len has max_len - (t - begin) padding cells: an arithmetic series.
            short = np.maximum(0, np.minimum(windows.stop, begin + loader.max_len) - windows.first_target + 1)
            self.padding = short * (loader.max_len - windows.first_target + begin) - short * (short - 1) // 2
        arrays = loader.tape, loader.offsets, windows.user, windows.start, windows.stop, windows.first_target
        self.tensors = [torch.from_numpy(array).to(self.device) for array in arrays]

    @staticmethod
    def bytes_of(loader: Loader) -> int:
        """What the data of a loader takes on a device, one epoch's order with it."""
        windows = len(loader.windows)
        sampler = 0 if loader.sampler is None else DeviceSampler.bytes_of(loader.sampler)
        return loader.tape.nbytes + loader.offsets.nbytes + 8 * 8 * windows + 80 * len(loader) + sampler

    def epoch(self, epoch: int, into: ResidentEpoch | None = None) -> ResidentEpoch:
        """An epoch's order, copied to the device; ``into``: over that of another epoch, which a graph has recorded."""
        return ResidentEpoch(self, epoch, into)

    def batches(self, epoch: int, start: int = 0) -> Generator[JaggedBatch, None, None]:
        """As ``Loader.batches``, on the device."""
        if start < len(self.loader):
            data = self.epoch(epoch)
            for i in range(start, len(self.loader)):
                yield data.batch(i)


class ResidentEpoch:
    """The batches of an epoch. The order of its windows is on the device, and so are the numbers of every batch.

    Attributes:
        places: int64 [batches, 10] on the device, what ``batch_at`` takes a row of: low and high (first and last window
            of the batch in the epoch's order), number of its first target among all ranks', targets over all ranks,
            seed and step of the negatives, seed and step of dropout, padding cells of the L2 term, number of the batch.
        sizes: int64 [batches, 4], the ``Sizes`` of each batch.
        n_targets: int64 [batches], targets of each batch over all ranks.
    """

    def __init__(self, data: ResidentData, epoch: int, into: ResidentEpoch | None) -> None:
        loader, plan = data.loader, data.loader.plan(epoch)
        self.data, self.n_targets, self._first = data, plan.n_targets, plan.first
        low, high = plan.parts.T
        lengths = data.lengths[plan.order]

        def before(each: Int64Array) -> Int64Array:
            return np.concatenate([[0], np.cumsum(each)])

        sums = [before(lengths), plan.targets_before]
        sums += [] if data.history is None else [before(data.history[plan.order])]
        self._padding = np.zeros(len(low), np.int64)
        if data.history is not None:
            running = before(data.padding[plan.order])
            self._padding = running[high] - running[low]
        counts = [total[high] - total[low] for total in sums]
        self.sizes = np.stack([counts[0], high - low, counts[1], counts[2] if loader.l2 else 0 * low], axis=1)
        # Of pairs of indices, the largest length from the first to the second; past the end there is one more.
        longest = np.maximum.reduceat(np.append(lengths, 0), plan.parts.reshape(-1))[::2]
        self._longest = np.where(low < high, longest, 0)
        seed = np.full(len(low), make_rng(loader.seed)[0].item())
        rngs = seed, plan.steps, seed, plan.steps * loader.world_size + loader.rank
        places = np.stack([low, high, plan.first, plan.n_targets, *rngs, self._padding, np.arange(len(low))], axis=1)
        arrays = [places, plan.order, *sums]
        if into is None:
            self._tensors = [torch.from_numpy(array).to(data.device) for array in arrays]
        else:
            self._tensors = into._tensors
            for tensor, array in zip(self._tensors, arrays, strict=True):
                tensor.copy_(torch.from_numpy(array))
        self.places = self._tensors[0]

    def batch(self, i: int) -> JaggedBatch:
        """Batch ``i``, as the loader makes it."""
        batch = self._batch(self.places[i], Sizes(*self.sizes[i].tolist()), int(self._first[i]))
        batch.max_len = int(self._longest[i])
        batch.n_targets_global, batch.l2_padding = int(self.n_targets[i]), int(self._padding[i])
        batch.last_only = self.data.loader.per_target
        if batch.n_targets == len(batch.items):
            batch.rows = None
        return batch

    def batch_at(self, place: Tensor, sizes: Sizes) -> JaggedBatch:
        """The batch of a row of ``places``, wherever that lies, in sizes that are the same for every batch.

        Nothing here depends on which batch it is, so a CUDA graph that records this makes the batch whose row is copied
        to ``place`` before a replay.

        Args:
            place: int64 [10].
            sizes: as ``capacities`` gives them; not looked at here whether they hold the batch: ``fits`` does.

        Returns:
            A batch whose unused inputs are padding in sequences of their own, and whose unused targets are -100, with
            negatives that have no meaning. ``divisor`` has the targets over all ranks, ``n_targets_global`` is 0,
            ``max_len`` that of the longest window, ``last_only`` False, ``l2_padding`` a tensor.

        Raises:
            ValueError: with ``per_target`` negatives on several ranks, whose draws need a number that differs.
        """
        data = self.data
        if data.loader.world_size > 1 and data.sampler is not None and data.sampler.mode == "per_target":
            raise ValueError("batch_at has no negatives per target on several ranks: take batch, or shared negatives")
        batch = self._batch(place, sizes, partly=True)
        batch.max_len, batch.divisor, batch.l2_padding = data.longest, place[3], place[8]
        if data.whole and sizes.n_targets == sizes.n_events:
            batch.rows = None
        return batch

    def capacities(self, margin: float = 0.0) -> Sizes:
        """Sizes in which every batch of this epoch has room; ``margin``: a share more, for the epochs to come."""
        events, sequences, targets, history = np.ceil(self.sizes.max(0) * (1 + margin)).astype(np.int64).tolist()
        short = (self.sizes[:, 0] == events) & (self.sizes[:, 2] < targets)
        events += int(short.any())  # an unused target is at an unused input
        further = -(-(events - self.sizes[:, 0]) // self.data.max_len)
        sequences = max(sequences, int((self.sizes[:, 1] + further).max()))
        return Sizes(events, sequences, targets, history)

    def fits(self, sizes: Sizes) -> bool:
        """Whether every batch of this epoch has room in ``sizes``."""
        events, sequences, targets, history = self.sizes.T
        further = -(-(sizes.n_events - events) // self.data.max_len)
        return bool(
            (events + (targets < sizes.n_targets) <= sizes.n_events).all()
            and (sequences + further <= sizes.n_sequences).all()
            and (targets <= sizes.n_targets).all()
            and (history <= sizes.n_history).all()
        )

    def _batch(self, place: Tensor, sizes: Sizes, first: int = 0, partly: bool = False) -> JaggedBatch:
        """``partly``: whether some of its targets are unused."""
        data = self.data
        arguments: list[Any] = [*data.tensors, *self._tensors[1:], *[None] * (not data.loader.l2), place[:2]]
        gathered = gather_windows(*arguments, **sizes._asdict(), max_len=data.max_len, padding_idx=data.loader.n_items)
        batch = JaggedBatch(
            items=gathered.items,
            offsets=gathered.offsets,
            users=gathered.users,
            max_len=0,
            rows=gathered.rows,
            targets=gathered.targets,
            target_sequences=gathered.target_sequences,
            target_users=gathered.target_users,
            l2_items=gathered.l2_items if data.loader.l2 else None,
            l2_weights=gathered.l2_weights if data.loader.l2 else None,
            rng=place[6:8],
        )
        if data.sampler is not None:
            batch.negatives, batch.log_q = data.sampler.sample(batch, place[4:6], first=first, partly=partly)
        return batch
