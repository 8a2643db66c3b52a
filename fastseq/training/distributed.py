"""Several processes, one training: started by torchrun, joined by torch.distributed. One process needs none of it."""

from __future__ import annotations

import inspect
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastseq.errors import ConfigError

from . import watch

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

        A process that dies, freezes or fails then ends all that have joined, within a minute and with a line that names
        it (``watch``). A group that somebody else has made is left as it is.

        Raises:
            ConfigError: if that environment is incomplete, or differs between processes.
            TrainingError: if not all processes come within a minute, naming those that have not.
        """
        if not dist.is_available():
            return cls()
        if not dist.is_initialized():
            if os.environ.get("WORLD_SIZE", "1") == "1":
                return cls()
            missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
            if missing:
                raise ConfigError(f"WORLD_SIZE is set but {', '.join(missing)} is not; start with torchrun")
            rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            store, watching = watch.meet(rank, world_size)
            watch.begin(watching)
            group: dict[str, Any] = {"store": store, "rank": rank, "world_size": world_size}
            with watch.failing_together():
                if device is not None and device.type == "cuda":
                    torch.cuda.set_device(device)
                    dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device, **group)
                else:
                    dist.init_process_group("gloo", **group)
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

    def agree(self, said: Mapping[str, Any]) -> None:
        """Compares plain values that must be the same in all processes.

        Raises:
            ConfigError: the same in every process, naming what differs, the values and whose they are.
        """
        if self.world_size == 1:
            return
        text = json.dumps([socket.gethostname(), dict(said)], default=str).encode()
        sizes = self.gather(torch.tensor([len(text)]))
        padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
        padded[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        everyone = [json.loads(bytes(x[:n].tolist())) for x, n in zip(self.gather(padded), sizes, strict=True)]
        differing = []
        for key in dict.fromkeys(key for _, theirs in everyone for key in theirs):
            ranks_of: dict[str, list[str]] = {}
            for rank, (host, theirs) in enumerate(everyone):
                value = str(theirs[key]) if key in theirs else "absent"
                ranks_of.setdefault(value, []).append(f"rank {rank} on {host}")
            if len(ranks_of) > 1:
                values = [f"{_short(value)} for {_few(who)}" for value, who in ranks_of.items()]
                differing.append(f"{key} is {' and '.join(values)}")
        if differing:
            raise ConfigError(
                f"processes that train together differ: {_few(differing, '; ')}. Start all with the same "
                "configuration, data and version"
            )

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.world_size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Takes this process out of the group, if there is one: the last thing a program does with it."""
        watch.leave()
        if self.world_size > 1:
            dist.destroy_process_group()


def _few(texts: Sequence[str], between: str = ", ", most: int = 6) -> str:
    """The texts in a row; of many the first, and how many more there are."""
    return between.join(texts[:most]) + (f"{between}and {len(texts) - most} more" if len(texts) > most else "")


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


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
