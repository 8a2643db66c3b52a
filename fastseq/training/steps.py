"""How the loop takes optimizer steps: operation by operation, or as one recorded CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastseq.data.batch import JaggedBatch
from fastseq.data.loader import Loader
from fastseq.models.base import SequentialRecommender

from .distributed import Ranks
from .options import TrainingOptions
from .precision import products


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

    def take(self, work: Any, step: int) -> None:
        """Takes the optimizer's step number ``step`` with the learning rates that its groups name; does not wait."""

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
        self._losses: list[Tensor] = []

    def of_epoch(self, epoch: int, start: int) -> Generator[JaggedBatch, None, None]:
        return self.loader.batches(epoch, start)

    def take(self, work: JaggedBatch, step: int) -> None:
        assert work.rng is not None
        self.model.hold_rng(work.rng)
        # Each rank's loss is its share of the mean over all targets: shares add up, but DDP averages gradients.
        scale = self.ranks.world_size
        self._losses.append(descend(self.model, self.optimizer, self.objective, work, self.options, scale))

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


def descend(
    model: SequentialRecommender,
    optimizer: torch.optim.Optimizer,
    objective: Callable[[JaggedBatch], Tensor],
    batch: JaggedBatch,
    options: TrainingOptions,
    scale: int = 1,
) -> Tensor:
    """One optimizer step: the loss of ``batch``, which is returned, its gradients times ``scale``, the update."""
    device = batch.items.device
    with products(options.precision, device):
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = objective(batch)
        loss.backward(_upstream(scale, loss.dtype, device))
    if options.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()
