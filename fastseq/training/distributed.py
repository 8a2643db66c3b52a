"""Several processes, one training: started by torchrun, joined by torch.distributed. One process needs none of it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastseq.errors import ConfigError

if TYPE_CHECKING:
    from fastseq.data.batch import JaggedBatch
    from fastseq.models.base import SequentialRecommender


@dataclass(frozen=True)
class Ranks:
    """This process among all that train together.

    Attributes:
        rank: 0 … world_size − 1; rank 0 writes files and reports.
        world_size: how many processes there are.
    """

    rank: int = 0
    world_size: int = 1

    @classmethod
    def join(cls, device: torch.device | None = None) -> Ranks:
        """The process group there is, or the one that torchrun's environment (RANK, WORLD_SIZE) asks for.

        Args:
            device: what this process trains on. A group that is made here has NCCL for a GPU, which becomes the current
                one; gloo is for tensors on the CPU.

        Raises:
            ConfigError: if that environment is incomplete.
        """
        if not dist.is_available():
            return cls()
        if not dist.is_initialized():
            if os.environ.get("WORLD_SIZE", "1") == "1":
                return cls()
            missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
            if missing:
                raise ConfigError(f"WORLD_SIZE is set but {', '.join(missing)} is not; start with torchrun")
            if device is not None and device.type == "cuda":
                torch.cuda.set_device(device)
                dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
            else:
                dist.init_process_group("gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor``, on the CPU, summed over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """That of every process, of equal shapes, in the order of the ranks."""
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(gathered, tensor.contiguous())
        return gathered

    def summing(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begins ``sum`` and returns at once; what it returns waits for the others and gives the result."""
        work = dist.all_reduce(tensor, async_op=True) if self.world_size > 1 else None

        def summed() -> Tensor:
            if work is not None:
                work.wait()
            return tensor

        return summed

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process: the same answer in all of them."""
        return flag if self.world_size == 1 else bool(self.sum(torch.tensor(int(flag))))

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.world_size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Takes this process out of the group, if there is one: the last thing a program does with it."""
        if self.world_size > 1:
            dist.destroy_process_group()


class _Objective(nn.Module):
    """The loss as a module's forward, which is what DistributedDataParallel can wrap."""

    def __init__(self, model: SequentialRecommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: JaggedBatch) -> Tensor:
        return self.model.loss(batch)


def distributed_loss(model: SequentialRecommender, tables: Sequence[Tensor] = ()) -> Callable[[JaggedBatch], Tensor]:
    """``model.loss`` with gradients averaged over all processes in its backward pass, but those of ``tables``, whose
    rows are exchanged otherwise. All processes begin with the parameters of the first."""
    # The one buffer that changes, the dropout's rng, differs from rank to rank on purpose.
    accepted = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in accepted else "broadcast_buffers"  # until torch 2.12
    options: dict[str, Any] = {name: False}
    objective = _Objective(model)
    if tables:
        names = [name for name, x in objective.named_parameters() if any(x is table for table in tables)]
        objective._ddp_params_and_buffers_to_ignore = names  # type: ignore[assignment]
        for table in tables if model.shards is None else ():
            dist.broadcast(table.detach(), 0)
    return nn.parallel.DistributedDataParallel(objective, **options)
