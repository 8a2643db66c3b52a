"""How the loop takes optimizer steps: operation by operation, or as one recorded CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastseq.data.batch import JaggedBatch
from fastseq.data.loader import Loader
from fastseq.data.resident import ResidentData, ResidentEpoch, Sizes
from fastseq.errors import TrainingError
from fastseq.models.base import SequentialRecommender
from fastseq.optim import RowAdam

from .distributed import Ranks
from .options import TrainingOptions
from .precision import products
from .rows import TouchedRows


class Work(Protocol):
    """What one step trains on.

    Attributes:
        n_targets: targets of this rank; n_targets_global: of all ranks.
    """

    @property
    def n_targets(self) -> int: ...

    @property
    def n_targets_global(self) -> int: ...


class Steps(Protocol):
    """The steps of a training, in either way."""

    def of_epoch(self, epoch: int, start: int) -> Generator[Any, None, None]:
        """The work of the steps ``start`` and on of an epoch."""

    def take(self, work: Any) -> None:
        """Takes one optimizer step with the learning rates that its groups name; does not wait."""

    def losses(self) -> list[float]:
        """This rank's loss of each step since the last call; waits for the device."""


class EagerSteps:
    """Steps whose operations are launched one by one.

    Args:
        model, optimizer, loader, options: what is trained, how and on what.
        objective: the loss of a batch: the model's, or one that joins the gradients of all ranks.
        ranks: all of them.
    """

    def __init__(
        self,
        model: SequentialRecommender,
        optimizer: torch.optim.Optimizer,
        loader: Loader,
        options: TrainingOptions,
        objective: Callable[[JaggedBatch], Tensor],
        ranks: Ranks,
    ) -> None:
        self.model, self.optimizer, self.loader = model, optimizer, loader
        self.options, self.objective, self.ranks = options, objective, ranks
        fixed = loader.device.type != "cpu" and ranks.world_size == 1  # what is exchanged, the host must know
        self._rows = TouchedRows(model, optimizer, fixed, ranks) if isinstance(optimizer, RowAdam) else None
        self._losses: list[Tensor] = []

    def of_epoch(self, epoch: int, start: int) -> Generator[JaggedBatch, None, None]:
        return self.loader.batches(epoch, start)

    def take(self, work: JaggedBatch) -> None:
        assert work.rng is not None
        if self._rows is not None:
            self.model.waiting_rows = self._rows.optimizer
        self.model.hold_rng(work.rng)
        # Each rank's loss is its share of the mean over all targets: shares add up, but DDP averages gradients.
        scale = self.ranks.world_size
        self._losses.append(descend(self.model, self.optimizer, self.objective, work, self.options, scale, self._rows))

    def losses(self) -> list[float]:
        if not self._losses:
            return []
        losses: list[float] = torch.stack(self._losses).double().tolist()
        self._losses.clear()
        return losses


@cache
def _upstream(scale: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The gradient of a loss, made once: PyTorch would fill a new one in every step."""
    return torch.full((), scale, dtype=dtype, device=device)


WARMUP = 3  # steps launched one by one before the recording: kernels are compiled, the optimizer gets its state
MARGIN = 1 / 16  # room for larger batches of later epochs, as a share of an epoch's largest
RATES = 2  # most groups of parameters


@dataclass(frozen=True)
class Place:
    """Batch ``number`` of an epoch."""

    number: int
    n_targets: int

    @property
    def n_targets_global(self) -> int:
        return self.n_targets


class StaticSteps:
    """Steps over tensors of fixed sizes, recorded once as a CUDA graph and replayed.

    The data lie on the device: a step gathers its batch and draws its negatives there. What differs from step to step
    are a row of ten numbers, copied from one place on the device to another, and the learning rates. A batch has room
    for the largest one so far; what it does not need are sequences of padding and targets that do not count. A larger
    one in a later epoch is recorded anew, as are weights and optimizers that were changed between two trainings.

    The first steps, and on a CPU all, are launched one by one. Where the recording fails they go on so, with a warning.

    Args:
        model, optimizer, options: what is trained, and how.
        data: the training part, on the device of the model.
    """

    def __init__(
        self,
        model: SequentialRecommender,
        optimizer: torch.optim.Optimizer,
        data: ResidentData,
        options: TrainingOptions,
    ) -> None:
        self.model, self.optimizer, self.data, self.options = model, optimizer, data, options
        self._rows = TouchedRows(model, optimizer, True, Ranks()) if isinstance(optimizer, RowAdam) else None
        self.recording = data.device.type == "cuda"
        self._stream: Any = torch.cuda.Stream(data.device) if self.recording else None
        self._graph: Any = None
        self._recorded: list[Any] = []
        self._warm = 0
        self._epoch: ResidentEpoch | None = None
        self._known = 0  # epochs that the sizes have room for
        self.sizes: Sizes | None = None
        self._place = torch.zeros(10, dtype=torch.int64, device=data.device)
        self._rates = torch.zeros(RATES, dtype=torch.float32, device=data.device)
        self._rates_there: list[float] = []
        self._losses = torch.zeros(len(data.loader), dtype=torch.float32, device=data.device)  # of an epoch's batches
        self._unread: list[int] = []  # of which batches
        self._read: list[float] = []

    def of_epoch(self, epoch: int, start: int) -> Generator[Place, None, None]:
        self._read += self._drain()  # before the losses of another epoch take their places
        if self._rows is not None:
            self._rows.optimizer.reserve(len(self.data.loader))
        if self._graph is not None and self._recorded != self._fixed():
            self._graph, self._warm = None, 0
        # Of every epoch until this one, so that a training that was stopped has the sizes of one that was not.
        for number in range(min(self._known, epoch), epoch + 1):
            self._epoch = self.data.epoch(number, into=self._epoch)
            if self.sizes is None or not self._epoch.fits(self.sizes):
                self.sizes, self._graph, self._warm = self._epoch.capacities(MARGIN), None, 0
        self._known = max(self._known, epoch + 1)
        assert self._epoch is not None
        for number, n_targets in enumerate(self._epoch.n_targets[start:].tolist(), start):
            yield Place(number, n_targets)

    def take(self, work: Place) -> None:
        assert self._epoch is not None
        if self._rows is not None:  # here, as a replay runs nothing of the host's
            self.model.waiting_rows = self._rows.optimizer
        rates = [group["lr"] for group in self.optimizer.param_groups]
        if rates != self._rates_there:
            for there, rate in zip(self._rates, rates, strict=False):
                there.fill_(rate)  # no copy from the host, which would wait for the device
            self._rates_there = rates
        self._place.copy_(self._epoch.places[work.number])
        if self._graph is None and self.recording and self._warm >= WARMUP:
            self._record()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._warm += 1
            self._launch()
        self._unread.append(work.number)

    def losses(self) -> list[float]:
        losses = self._read + self._drain()
        self._read = []
        return losses

    def _drain(self) -> list[float]:
        """Losses that are on the device alone."""
        unread, self._unread = self._unread, []
        if not unread:
            return []
        losses: list[float] = self._losses.double().tolist()
        return [losses[number] for number in unread]

    def _launch(self) -> None:
        if self._stream is None:
            return self._step()
        # On the stream that records, so that a replay finds what these steps have left there.
        current = torch.cuda.current_stream(self.data.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._step()
        current.wait_stream(self._stream)

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads of the process may use the GPU meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._step()
        except RuntimeError as error:
            self.optimizer.zero_grad(set_to_none=True)
            if self.options.execution == "graph" and isinstance(error, torch.OutOfMemoryError):
                raise
            if self.options.execution == "graph":
                raise TrainingError(
                    f"execution is graph, but the step cannot be recorded ({error}): use eager"
                ) from error
            warnings.warn(f"steps are launched one by one, a CUDA graph cannot record them: {error}", stacklevel=2)
            self.recording = False
            return
        self._graph, self._recorded = graph, self._fixed()

    def _fixed(self) -> list[Any]:
        """What a recording has in it for good: between two calls of ``fit`` others may move or freeze it."""
        states, groups = self.optimizer.state.values(), self.optimizer.param_groups
        return [
            [(parameter.data_ptr(), parameter.requires_grad) for parameter in self.model.parameters()],
            [x.data_ptr() for state in states for x in state.values() if isinstance(x, Tensor)],
            [{key: x for key, x in group.items() if key not in ("params", "lr")} for group in groups],
        ]

    def _step(self) -> None:
        """The step of the batch that ``_place`` holds, without a number of the host's that other steps lack."""
        assert self._epoch is not None and self.sizes is not None
        batch = self._epoch.batch_at(self._place, self.sizes)
        assert batch.rng is not None
        self.model.hold_rng(batch.rng)
        groups = self.optimizer.param_groups
        kept = [{key: group[key] for key in ("lr", "capturable")} for group in groups]
        captured = self._stream is not None and torch.cuda.is_current_stream_capturing()
        for group, rate in zip(groups, self._rates.unbind(), strict=False):
            group.update(lr=rate, capturable=captured)
        try:
            loss = descend(self.model, self.optimizer, self.model.loss, batch, self.options, rows=self._rows)
        finally:
            for group, values in zip(groups, kept, strict=True):
                group.update(values)
        self._losses.index_copy_(0, self._place[-1:], loss.float().reshape(1))


def descend(
    model: SequentialRecommender,
    optimizer: torch.optim.Optimizer,
    objective: Callable[[JaggedBatch], Tensor],
    batch: JaggedBatch,
    options: TrainingOptions,
    scale: int = 1,
    rows: TouchedRows | None = None,
) -> Tensor:
    """One optimizer step: the loss of ``batch``, which is returned, its gradients times ``scale``, the update.

    With ``rows`` tables get gradients of the rows that the batch touches and no others.
    """
    device = batch.items.device
    if rows is not None:
        batch = rows.gather(batch)
    with products(options.precision, device):
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = objective(batch)
        loss.backward(_upstream(scale, loss.dtype, device))
    touched = [] if rows is None else rows.gradients()
    if rows is None:
        if options.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        optimizer.step()
    else:
        if options.clip_norm is not None:
            rows.clip(touched, options.clip_norm)
        rows.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()
