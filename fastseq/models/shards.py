"""Tables divided over the processes that train together, for catalogues that no one of them could hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import ops

DRAWN_ROWS = 1 << 16  # at a time; a multiple of 16 elements, as many as PyTorch draws together


@dataclass(frozen=True)
class Shards:
    """Which rows of a table this process holds: row i is row i // world_size of process i % world_size.

    So equal shares of popular rows, whatever order they are in. What has "all processes" in its description must be
    called by each of them, in the same order.

    Attributes:
        rank: 0 … world_size − 1.
        world_size: how many processes there are, all of them in torch.distributed's group.

    Raises:
        ValueError: if there is no such rank.
    """

    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}, expected 0 … world_size − 1, and world_size is {self.world_size}")

    def count(self, rows: int) -> int:
        """How many of ``rows`` this process holds."""
        return (rows - self.rank + self.world_size - 1) // self.world_size

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Those of all processes, in their order, equal but for the first dimension."""
        size = torch.tensor([tensor.shape[0]], device=tensor.device)
        sizes = [torch.empty_like(size) for _ in range(self.world_size)]
        dist.all_gather(sizes, size)
        counts = torch.cat(sizes).tolist()
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: tensor.shape[0]] = tensor
        gathered = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(gathered, padded)
        return [each[:count] for each, count in zip(gathered, counts, strict=True)]

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor`` summed over all processes, in place."""
        dist.all_reduce(tensor)
        return tensor

    def mean(self, table: Tensor, rows: int) -> Tensor:
        """The mean row [1, d] of a table of ``rows``, of which ``table`` is this process's part; all processes."""
        return self.sum(table.sum(dim=0, keepdim=True, dtype=torch.float64)).div_(rows).to(table.dtype)

    def topk(
        self, h: Tensor, table: Tensor, n_items: int, k: int, seen_offsets: Tensor | None, seen_items: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``ops.topk`` of a whole catalogue: each process ranks its own rows, and the best k are merged.

        Args:
            h, k, seen_offsets, seen_items: as there, the same in all processes.
            table: this process's rows of the item table, padding among them where it holds it.
            n_items: rows of the catalogue.

        Returns:
            As there, in all processes.
        """
        if seen_items is not None and seen_offsets is not None:
            mine = seen_items % self.world_size == self.rank
            before = torch.cat([mine.new_zeros(1, dtype=torch.int64), mine.cumsum(0)])
            seen_offsets, seen_items = before[seen_offsets.long()], seen_items[mine] // self.world_size
        own = table[: self.count(n_items)]
        scores, items = ops.topk(h.to(own.dtype), own, k, seen_offsets=seen_offsets, seen_items=seen_items)
        nothing = items < 0
        items = (items * self.world_size + self.rank).masked_fill_(nothing, torch.iinfo(torch.int64).max)
        scores, items = (torch.cat(self.gather(x.T)).T for x in (scores, items))
        items, order = items.sort(dim=1)  # of equal scores the smaller id comes first
        scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
        scores, items = scores[:, :k].contiguous(), items.gather(1, order)[:, :k]
        return scores, items.masked_fill(scores == float("-inf"), -1)


class Lookup:
    """Rows of a divided table that each process asks the others for, and the way back for their gradients.

    Args:
        shards: of the table.
        ids: int64 [R], distinct. All processes.

    Attributes:
        rows: int64 [M], ascending: rows of this process's part that any process asks for.
    """

    def __init__(self, shards: Shards, ids: Tensor) -> None:
        owners = ids % shards.world_size
        self._order = torch.argsort(owners, stable=True)
        sent = torch.bincount(owners, minlength=shards.world_size)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        self._sent, self._received = sent.tolist(), received.tolist()
        asked = _exchange(ids[self._order] // shards.world_size, self._sent, self._received)
        self.rows, self._places = torch.unique(asked, return_inverse=True)

    def fetch(self, table: Tensor) -> Tensor:
        """The rows [R, d] of the ids, from the parts ``table`` of all processes."""
        given = table.index_select(0, self.rows).index_select(0, self._places)
        rows = _exchange(given, self._received, self._sent)
        return torch.empty_like(rows).index_copy_(0, self._order, rows)

    def give_back(self, grad: Tensor) -> Tensor:
        """The sums [M, d] of what all processes have for ``rows``, of their own ``grad`` [R, d]: in the order of the
        processes, so that a repetition has the same bits."""
        given = _exchange(grad.index_select(0, self._order), self._sent, self._received)
        sums = grad.new_zeros(self.rows.shape[0], grad.shape[1])
        for part, places in zip(given.split(self._received), self._places.split(self._received), strict=True):
            sums.index_add_(0, places, part)
        return sums


def _exchange(x: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Stretches of ``x``, ``sent`` long, to the processes in order; what they have sent here, in order."""
    result = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(result, x.contiguous(), received, sent)
    return result


class ShardedEmbedding(nn.Embedding):
    """This process's rows of an embedding, with the first weights that the whole one would have.

    Args:
        rows, width: of the whole.
        padding: its padding row; None: none.
        shards: how it is divided.
    """

    def __init__(self, rows: int, width: int, padding: int | None, shards: Shards) -> None:
        super().__init__(shards.count(rows), width, _weight=torch.empty(shards.count(rows), width))
        self.rows, self.padding, self.shards = rows, padding, shards
        self.draw(1.0)  # as nn.Embedding does

    @torch.no_grad()
    def draw(self, std: float | None) -> None:
        """Normal weights of that deviation (None: Xavier's): the draws of the whole table, a part of it at a time."""
        std = math.sqrt(2.0 / (self.rows + self.embedding_dim)) if std is None else std
        start, step, size = 0, DRAWN_ROWS, self.shards.world_size
        while start < self.rows:
            stop = start + step if start + 2 * step <= self.rows else self.rows
            drawn = self.weight.new_empty(stop - start, self.embedding_dim).normal_(0.0, std)
            first = (self.shards.rank - start) % size
            mine = drawn[first::size]
            own = (start + first) // size
            self.weight[own : own + mine.shape[0]] = mine
            start = stop
        if self.padding is not None and self.padding % size == self.shards.rank:
            self.weight[self.padding // size].zero_()
