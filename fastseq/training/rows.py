"""Training on the rows of a table that a step touches: neither a gradient nor an update of the others."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastseq.data.batch import JaggedBatch
from fastseq.errors import ConfigError
from fastseq.models.base import SequentialRecommender
from fastseq.models.jagged import numbered, placed
from fastseq.models.recommend import has_replaced_method
from fastseq.models.shards import Lookup
from fastseq.optim import RowAdam, RowGradient

from .distributed import Ranks
from .options import TrainingOptions

# So many times as many rows as a step names must the tables have for updates by rows: from there on they are faster. On
# a GPU an estimate.
FEW_ROWS = {"cpu": 4, "cuda": 64}


def named_rows(model: SequentialRecommender, per_target: bool) -> int:
    """About how many ids a step names: of each target its events, itself and its negatives, and its user. Shared
    windows have about an event a target; where they overlap, and with batches of one target a sequence, more."""
    events = model.max_seq_len if per_target else model.max_seq_len / (model.window_stride or model.max_seq_len)
    each = events + 1 + model.needs_user
    shared = model.negatives != "per_target"
    return int(model.batch_size * (each + (0 if shared else model.neg_samples)) + model.neg_samples * shared)


def why_dense(
    model: SequentialRecommender, options: TrainingOptions, warn: bool, device: torch.device | None = None
) -> str | None:
    """Why every step walks the whole tables of a model; None where it moves the rows that it touches.

    ``device`` is where it will be trained; None: where it is.

    Raises:
        ConfigError: if the options ask for rows that are not served.
    """
    if options.updates == "dense" and model.shards is None:
        return "updates is dense"
    if model.shards is not None:
        of_loss = ["cross_entropy gives every item a gradient"] * (model.loss_name == "cross_entropy")
        of_option = ["updates is dense"] * (options.updates == "dense")
        if reasons := [*of_option, *of_loss, *not_served(model, options)]:
            raise ConfigError(f"tables are sharded, which needs updates by rows, but {reasons[0]}; use whole tables")
        return None
    if model.loss_name == "cross_entropy":
        why = "cross_entropy gives every item a gradient"
        if options.updates == "rows" and warn:
            warnings.warn(f"updates is rows, but {why}: they are dense", stacklevel=5)
        return why
    reason = next(not_served(model, options), None)
    if reason is not None and options.updates == "rows":
        raise ConfigError(f"updates is rows, but {reason}; use auto or dense")
    if reason is None and options.updates == "auto":
        tables = list(model.tables().values())
        rows, named = sum(table.shape[0] for table in tables), named_rows(model, options.per_target)
        if rows < FEW_ROWS.get((device or tables[0].device).type, FEW_ROWS["cuda"]) * named:
            return f"a step names about {named:,} of {rows:,} rows"
    return reason


def not_served(model: SequentialRecommender, options: TrainingOptions) -> Iterator[str]:
    """What keeps a model from being trained by rows."""
    name, params = type(model).__name__, options.optimizer_params
    if options.optimizer != "Adam":
        yield f"the optimizer is {options.optimizer}"
    if not params.keys() <= {"betas", "eps"}:
        yield f"Adam's parameters are {', '.join(params)}"
    first, second = params.get("betas", (0.9, 0.999))
    if first >= math.sqrt(second):
        yield "betas[0] is not below the square root of betas[1]"
    if type(model).configure_optimizers is not SequentialRecommender.configure_optimizers:
        yield f"{name} has an optimizer of its own"
    if has_replaced_method(model) or not type(model).__module__.startswith("fastseq."):
        yield f"{name} is not one of fastseq's own models as they are"  # what it does with ids or tables is not known
    if any(table.element_size() < 4 for table in model.tables().values()):
        yield "a table is of half precision"
    if not all(table.requires_grad for table in model.tables().values()):
        yield "a table is frozen"


class TouchedRows:
    """The rows of a model's tables that one batch reads, as leaves of autograd in place of the tables.

    ``gather`` numbers the ids of a batch anew, by their places among its distinct ids, and hands the model those rows,
    up to date; the gradients of the rows are then those of the tables, with which ``step`` moves them.

    Args:
        model: one whose ``loss`` reads its tables through a batch's ``item_rows`` and ``user_rows``.
        optimizer: what keeps the tables' rows.
        fixed: give the rows of a batch as much room as it has ids, whichever they are, and ask the device nothing: for
            CUDA graphs. Else they are as many as there are, and gradients are sparse tensors.
        ranks: those that train together. Their tables are the same; the rows that any of them touches are exchanged.
    """

    def __init__(self, model: SequentialRecommender, optimizer: RowAdam, fixed: bool, ranks: Ranks) -> None:
        self.model, self.optimizer, self.fixed, self.ranks = model, optimizer, fixed, ranks
        self._touched: list[_Touched] = []

    def gather(self, batch: JaggedBatch) -> JaggedBatch:
        """``batch`` in numbers of its own rows, which it holds."""
        self._touched.clear()
        ids = {name: getattr(batch, name) for name in ("items", "targets", "negatives", "l2_items")}
        rows, places = self._rows(self.model.item_embedding.weight, ids, self.model.n_items)
        if self.fixed:  # targets that do not count are still none
            places["targets"] = torch.where(batch.targets < 0, batch.targets, places["targets"])
        batch = replace(batch, item_rows=rows, **places)
        if self.model.needs_user:
            users = {"target_users": batch.users_of_targets}
            rows, places = self._rows(self.model.user_embedding.weight, users, None)
            batch = replace(batch, user_rows=rows, **places)
        return batch

    def gradients(self) -> list[Tensor]:
        """After a backward pass: rows with their gradients, those of all ranks; of divided tables, this rank's rows."""
        if self.ranks.world_size > 1:
            self._touched = [each.of_all(self.ranks) for each in self._touched]
        return [each.rows for each in self._touched]

    def clip(self, touched: list[Tensor], max_norm: float) -> None:
        """Scales all gradients, those of ``touched`` among them, to a norm of at most ``max_norm`` over all ranks."""
        dense = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        if self.model.shards is None:
            nn.utils.clip_grad_norm_([*dense, *touched], max_norm)
            return
        own, alike = (
            nn.utils.get_total_norm([x.grad for x in part if x.grad is not None]) for part in (touched, dense)
        )
        total = (self.model.shards.sum(own.square()) + alike.square()).sqrt()
        nn.utils.clip_grads_with_norm_([*dense, *touched], max_norm, total)

    def step(self) -> None:
        """One step of the optimizer, with the gradients of the rows and of all other parameters."""
        if self.fixed:
            self.optimizer.step(rows={each.table: each.gradient() for each in self._touched})
            self._touched.clear()
        else:
            self.hand_over()
            self.optimizer.step()

    def hand_over(self) -> None:
        """Adds the gradients of the rows to those of the tables, as sparse tensors, ids ascending."""
        for each in self._touched:
            indices, values, before = each.ids[None], each.gradient().grad, each.table.grad
            grad = torch.sparse_coo_tensor(indices, values, each.table.shape, check_invariants=False, is_coalesced=True)
            each.table.grad = grad if before is None else (before + grad).coalesce()
        self._touched.clear()

    def _rows(
        self, table: Tensor, ids: Mapping[str, Tensor | None], padding: int | None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Rows of a table, of the distinct ids in ascending order, and for each name the places of its ids there.
        ``padding``, an id above all others, has the last place, whether it is among them or not."""
        count = lookup = None
        if self.fixed:
            named = {name: each for name, each in ids.items() if each is not None}
            together = torch.cat([each.reshape(-1) for each in named.values()])
            distinct, places, count = distinct_in_place(together, padding)
            numbers = placed(named, places)
        else:
            distinct, numbers = numbered(ids, padding)
        if self.model.shards is None:
            self.optimizer.catch_up(table, distinct, count)
            rows = table.detach().index_select(0, distinct)
        else:
            lookup = Lookup(self.model.shards, distinct)
            self.optimizer.catch_up(table, lookup.rows)
            rows = lookup.fetch(table.detach())
        if table.requires_grad:  # it may have been frozen since
            self._touched.append(_Touched(table, distinct, rows.requires_grad_(), count, lookup))
        return rows, numbers


@dataclass
class _Touched:
    """Rows of a table: the ids, the leaf, and how many of them count, from the first (None: all); of a divided table,
    how they came."""

    table: Tensor
    ids: Tensor
    rows: Tensor
    count: Tensor | None = None
    lookup: Lookup | None = None

    def gradient(self) -> RowGradient:
        grad = torch.zeros_like(self.rows) if self.rows.grad is None else self.rows.grad
        return RowGradient(self.ids, grad, self.count)

    def of_all(self, ranks: Ranks) -> _Touched:
        """The rows that any rank has touched, and the mean over the ranks of their gradients: summed in the order of
        the ranks, so that all have the same bits. Each sends its rows, padded to the longest list; those of a divided
        table go to the rank that holds them, and come out there."""
        if self.lookup is not None:
            sums = self.lookup.give_back(self.gradient().grad).div_(ranks.world_size)
            held = torch.empty_like(sums)
            held.grad = sums
            return _Touched(self.table, self.lookup.rows, held)
        sizes = ranks.gather(torch.tensor([self.ids.shape[0]]))
        most = int(max(sizes))
        ids, grad = self.ids.new_zeros(most), self.rows.new_zeros(most, self.rows.shape[1])
        ids[: self.ids.shape[0]], grad[: self.ids.shape[0]] = self.ids, self.gradient().grad
        all_ids = torch.cat([x[:n] for x, n in zip(ranks.gather(ids), sizes, strict=True)])
        all_grads = torch.cat([x[:n] for x, n in zip(ranks.gather(grad), sizes, strict=True)])
        distinct, places = torch.unique(all_ids, return_inverse=True)
        rows = self.rows.new_empty(distinct.shape[0], self.rows.shape[1])
        rows.grad = torch.zeros_like(rows).index_add_(0, places, all_grads).div_(ranks.world_size)
        return _Touched(self.table, distinct, rows)


def distinct_in_place(ids: Tensor, padding: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct of ids [N], ascending: int64 [N + 1], of which the first ``count`` [1] are some, without padding,
    and the others are padding, or 0; and the place of each id among them. An id below 0 has the place of 0."""
    last = ids.shape[0]
    ordered, order = torch.sort(ids.clamp(min=0))
    first = torch.ones_like(ordered)
    first[1:] = ordered[1:] != ordered[:-1]
    place = first.cumsum(0) - 1
    distinct = ids.new_full((last + 1,), 0 if padding is None else padding).index_copy_(0, place, ordered)
    count = place[-1:] + 1
    if padding is not None:
        count = count - (ordered[-1:] == padding).long()
        place = torch.where(ordered == padding, last, place)
    return distinct, torch.empty_like(place).index_copy_(0, order, place), count
