"""From windows to batches: shuffled, cut, divided over ranks, assembled in the background."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastseq.devices import free_memory
from fastseq.native import _C
from fastseq.ops import make_rng

from .batch import JaggedBatch
from .ids import Int64Array
from .interactions import Interactions
from .negatives import NegativeSampler, as_split
from .prefetch import prefetched
from .resident import ResidentData
from .split import Split
from .transfer import transferred
from .windows import pack_windows

# Of a GPU's free memory, what training data may take: the rest is for the optimizer and for a step.
RESIDENT_SHARE = 0.25


def cut(cumulative: Int64Array, goals: Int64Array) -> Int64Array:
    """Boundaries of ``len(goals) + 1`` parts of a row of windows, each nearest to its goal, no part empty.

    Args:
        cumulative: int64 [windows + 1], targets before each window; starts at 0. At least as many windows as parts.
        goals: int64 [parts - 1], increasing: how many targets each part but the last should end after.

    Returns:
        int64 [parts + 1]: part ``k`` has the windows ``[bounds[k], bounds[k + 1])``.
    """
    windows, parts = len(cumulative) - 1, len(goals) + 1
    after = np.clip(np.searchsorted(cumulative, goals), 1, windows)
    nearer = goals - cumulative[after - 1] <= cumulative[after] - goals
    nearest = np.where(nearer, after - 1, after)
    k = np.arange(1, parts)
    inner = np.clip(np.maximum.accumulate(nearest - k), 0, windows - parts) + k  # strictly increasing
    return np.concatenate([[0], inner, [windows]])


@dataclass(frozen=True, eq=False)
class Plan:
    """What an epoch's batches are made of, for one rank.

    Attributes:
        order: int64 [windows], the windows, shuffled.
        targets_before: int64 [windows + 1], targets before each of them, and of all.
        parts: int64 [batches, 2], batch ``i`` has the windows ``order[low:high]``.
        first: int64 [batches], number of the batch's first target here among those of all ranks.
        n_targets: int64 [batches], targets over all ranks.
        steps: int64 [batches], the number of the optimizer step.
    """

    order: Int64Array
    targets_before: Int64Array
    parts: Int64Array
    first: Int64Array
    n_targets: Int64Array
    steps: Int64Array


class Loader:
    """Batches of windows with their targets and negatives; a pure function of seed, epoch and rank.

    An epoch shuffles the windows by (seed, epoch) and cuts them at the window nearest to every ``batch_size`` targets:
    ``len(loader)`` = ceil(targets / batch_size) optimizer steps, as many as WarpRec takes. A batch has at least one
    window, so where single windows count more than ``batch_size`` targets there are fewer steps: one per window.
    Negatives are drawn with rng = [seed, epoch * len(loader) + i].

    With several ranks each batch is divided at the window nearest to equal numbers of targets. A rank's part is empty
    only where the batch has fewer windows than there are ranks. Targets and negatives do not depend on the number of
    ranks.

    Args:
        data: the split whose training part is used, or interactions, all of which are then.
        batch_size: targets per batch (over all ranks), at least 1.
        max_len: most inputs of a window (data/windows.py).
        window_stride: 1 ... max_len; None: max_len.
        seed: any integer.
        sampler: draws the negatives; None: batches have none.
        per_target: one sequence per target, as WarpRec does.
        context: windows reach back so that each target has its full history, for Caser.
        l2: whether batches carry the histories of the L2 term.
        rank, world_size: which part of how many.
        prefetch: batches prepared ahead by a background thread; 0: none, and no thread.
        device: where the batches are; None: the CPU. A GPU makes them itself, from data that stays there, where that
            takes no more than a quarter of its free memory; else the thread sends each by one asynchronous copy.

    Attributes:
        resident: the data on the GPU that makes the batches there, or None.
        residence: where batches are made and why, in words.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        data: Interactions | Split,
        *,
        batch_size: int,
        max_len: int,
        window_stride: int | None = None,
        seed: int = 42,
        sampler: NegativeSampler | None = None,
        per_target: bool = False,
        context: bool = False,
        l2: bool = False,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        device: torch.device | str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank} of world_size {world_size}, expected 0 <= rank < world_size")
        if prefetch < 0:
            raise ValueError(f"prefetch is {prefetch}, expected at least 0")
        split = as_split(data)
        self.tape = np.ascontiguousarray(split.interactions.items)
        self.offsets = np.ascontiguousarray(split.interactions.offsets)
        self.n_items = split.interactions.n_items
        self.windows = pack_windows(
            self.offsets, split.train_stop, max_len, window_stride, per_target=per_target, context=context
        )
        self.batch_size, self.max_len, self.seed = batch_size, max_len, seed
        self.sampler, self.per_target, self.l2 = sampler, per_target, l2
        self.rank, self.world_size, self.prefetch = rank, world_size, prefetch
        self.device = torch.device(device or "cpu")
        self.n_targets = int(self.windows.n_targets.sum())
        self._length = min(-(-self.n_targets // batch_size), len(self.windows))
        self.resident: ResidentData | None = None
        self.residence = f"batches are made on the {self.device}"
        if self.device.type == "cuda":
            needed, free = ResidentData.bytes_of(self), free_memory(self.device)
            size = f"{needed / 1e6:,.0f} MB of data"
            if needed <= free * RESIDENT_SHARE:
                # Of a copy: in a circle with this loader the memory would wait for Python's collector.
                self.resident = ResidentData(copy.copy(self), self.device)
                self.residence = f"batches are made on {self.device}, from {size} there"
            else:
                share = f"more than {RESIDENT_SHARE:.0%} of the {free / 1e6:,.0f} MB free on {self.device}"
                self.residence = f"batches are made on the cpu and copied from pinned memory: {size} are {share}"

    def __len__(self) -> int:
        """Batches (optimizer steps) of an epoch."""
        return self._length

    def batches(self, epoch: int, start: int = 0) -> Generator[JaggedBatch, None, None]:
        """This rank's part of the batches ``start ... len(loader) - 1`` of an epoch.

        Args:
            epoch: at least 0.
            start: how many batches to leave out, 0 ... len(loader); the others are the same, bit for bit.

        Raises:
            ValueError: if an argument is out of range, or (from the iteration) a user has no item left to draw.
        """
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, expected at least 0")
        if not 0 <= start <= self._length:
            raise ValueError(f"start is {start}, expected 0 ... {self._length}, the batches of an epoch")
        if self.resident is not None:
            return self.resident.batches(epoch, start)
        source = self._assembled(epoch, start)
        if self.device.type == "cpu":
            return prefetched(source, self.prefetch)
        return transferred(source, self.device, self.prefetch)

    def plan(self, epoch: int) -> Plan:
        """The order of the windows in an epoch, and this rank's part of it in every batch."""
        order = np.random.default_rng([self.seed % 2**64, epoch]).permutation(len(self.windows))
        before = np.concatenate([[0], np.cumsum(self.windows.n_targets[order])])
        bounds = cut(before, np.arange(1, self._length) * self.batch_size)
        starts, stops = bounds[:-1], bounds[1:]
        parts = np.stack([starts, stops], axis=1)
        if self.world_size > 1:
            for part, start, stop in zip(parts, starts, stops, strict=True):
                mine = self._part(before[start : stop + 1] - before[start])
                part[:] = start + mine.start, start + mine.stop
        steps = epoch * self._length + np.arange(self._length)
        return Plan(order, before, parts, before[parts[:, 0]] - before[starts], before[stops] - before[starts], steps)

    def _assembled(self, epoch: int, start: int) -> Iterator[JaggedBatch]:
        if start == self._length:
            return
        plan = self.plan(epoch)
        for i in range(start, self._length):
            (low, high), step = plan.parts[i], int(plan.steps[i])
            rng = make_rng(self.seed, step)
            batch = self._assemble(plan.order[low:high], rng, int(plan.first[i]), int(plan.n_targets[i]))
            # Each rank holds other rows, so each draws its dropout from a step of its own.
            batch.rng = make_rng(self.seed, step * self.world_size + self.rank)
            yield batch

    def _part(self, cumulative: Int64Array) -> slice:
        """The windows of a batch that are this rank's."""
        windows = len(cumulative) - 1
        parts = min(self.world_size, windows)
        if self.rank >= parts:
            return slice(windows, windows)
        bounds = cut(cumulative, cumulative[-1] * np.arange(1, parts) // parts)
        return slice(int(bounds[self.rank]), int(bounds[self.rank + 1]))

    def _assemble(self, indices: Int64Array, rng: Tensor, first: int, n_targets_global: int) -> JaggedBatch:
        """The batch of the windows ``indices``, whose first target is number ``first`` of ``n_targets_global``."""
        windows = self.windows
        lengths = windows.stop[indices] - windows.start[indices]
        n_inputs, n_targets = int(lengths.sum()), int(windows.n_targets[indices].sum())
        batch = JaggedBatch(
            items=torch.empty(n_inputs, dtype=torch.int64),
            offsets=torch.empty(len(indices) + 1, dtype=torch.int32),
            users=torch.empty(len(indices), dtype=torch.int64),
            max_len=int(lengths.max(initial=0)),
            rows=torch.empty(n_targets, dtype=torch.int64),
            targets=torch.empty(n_targets, dtype=torch.int64),
            target_sequences=torch.empty(n_targets, dtype=torch.int64),
            n_targets_global=n_targets_global,
            last_only=self.per_target,
        )
        if self.l2:
            reach = np.maximum(self.offsets[windows.user[indices]], windows.first_target[indices] - self.max_len)
            n_history = int((windows.stop[indices] - reach).sum())
            batch.l2_items = torch.empty(n_history, dtype=torch.int64)
            batch.l2_weights = torch.empty(n_history, dtype=torch.float32)
        written = ("items", "offsets", "users", "rows", "targets", "target_sequences", "l2_items", "l2_weights")
        buffers = (getattr(batch, name) for name in written)
        padding = _C.gather_windows(
            self.tape,
            self.offsets,
            windows.user,
            windows.start,
            windows.stop,
            windows.first_target,
            indices,
            self.max_len,
            *(None if buffer is None else buffer.numpy() for buffer in buffers),
        )
        if self.l2:
            batch.l2_padding = padding
        if n_targets == n_inputs:
            batch.rows = None
        if self.sampler is not None:
            # One thread: the others are training.
            batch.negatives, batch.log_q = self.sampler.sample(
                batch.users_of_targets, batch.targets, rng, first=first, threads=1
            )
        return batch
