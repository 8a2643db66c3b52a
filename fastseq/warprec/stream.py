"""An endless training stream as a ``torch.utils.data`` data set: every iteration is one epoch of ready-made batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import IterableDataset

from ..data.batch import JaggedBatch
from ..data.loader import Loader


class StreamItem:
    """One batch, equal to another with the same tensors. Whoever iterates over it, to count its samples, finds its
    targets and nothing else."""

    def __init__(self, batch: JaggedBatch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Tensor]:
        yield self.batch.targets

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that the batch has, by the names of ``JaggedBatch``."""
        return {name: value for name, value in vars(self.batch).items() if isinstance(value, Tensor)}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StreamItem):
            return NotImplemented
        ours, theirs = self.tensors, other.tensors
        return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StreamItem({', '.join(f'{name} {list(value.shape)}' for name, value in self.tensors.items())})"

    def to(self, device: torch.device | str, non_blocking: bool = False) -> StreamItem:
        """The same batch on ``device``."""
        return StreamItem(self.batch.to(device, non_blocking))


class BatchStream(IterableDataset[StreamItem]):
    """For ``DataLoader(stream, batch_size=None)``: one item is one batch, and the batches of a step are divided over
    the ranks of ``torch.distributed`` where it is initialised.

    Args:
        build: makes the loader of this rank: ``build(rank=..., world_size=...)``. Called when first needed, since
            torch.distributed may be initialised after the data loader is built; its ``prefetch`` should be 0, since
            the process may fork while an epoch is under way.
        seed: of ``rng``.

    Attributes:
        rng: numpy Generator; each epoch draws one number from it, which decides everything in that epoch. Its state
            between two epochs is all that a resumed run needs.
    """

    def __init__(self, build: Callable[..., Loader], seed: int) -> None:
        self.rng = np.random.default_rng(seed % 2**64)
        self._build = build
        self._loader: Loader | None = None

    def _current(self) -> Loader:
        ready = dist.is_available() and dist.is_initialized()
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)
        if self._loader is None or (self._loader.rank, self._loader.world_size) != (rank, world_size):
            self._loader = self._build(rank=rank, world_size=world_size)
        return self._loader

    def __len__(self) -> int:
        """Batches (optimizer steps) of an epoch."""
        return len(self._current())

    def __getitem__(self, index: int) -> StreamItem:
        """Batch ``index``, from 0, of the epoch that comes next, which is not drawn by this.

        Raises:
            IndexError: if the epoch has no such batch.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"an epoch has batches 0 to {len(self) - 1}, got {index}")
        epoch = int(copy.deepcopy(self.rng).integers(2**31))
        return StreamItem(next(self._current().batches(epoch, index)))

    def __iter__(self) -> Iterator[StreamItem]:
        # Drawn with the first batch, not before: a trainer may make an iterator, then restore rng, then use it.
        epoch = int(self.rng.integers(2**31))
        for batch in self._current().batches(epoch):
            yield StreamItem(batch)
