"""Ranking evaluation: every score with the protocol it was measured by.

A user's targets are ranked among the candidates by score. Ties are broken against the targets: every other candidate
with the same score ranks above them, so a model that scores everything alike gets nothing. Only as many of the
best candidates as the largest cut-off needs are ever held, and users × items scores never.
"""

from __future__ import annotations

import json
import platform
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastseq import _version
from fastseq.data.batch import Packed
from fastseq.data.interactions import Interactions
from fastseq.data.prefetch import prefetched
from fastseq.data.split import EvalPart, History, Part, Split
from fastseq.devices import device_name, memory_named
from fastseq.errors import DataError, check_integer
from fastseq.models.base import SequentialRecommender
from fastseq.models.recommend import check_catalogue, diverged, evaluating

from . import breakdown, significance
from .breakdown import By, Groups
from .distributed import Ranks
from .metrics import (
    NOVELTY_METRICS,
    MaskSeen,
    RankingProtocol,
    list_metrics,
    novelty_metrics,
    parse_metric,
    ranking_metrics,
    worst_order,
)
from .significance import UserValues

Cold: TypeAlias = Literal["miss", "rank"]
Int64Array: TypeAlias = NDArray[np.int64]
SCORES_AT_ONCE = 1 << 24  # of a scorer that gives whole rows: 64 MB in float32


class Scorer(Protocol):
    """What is evaluated besides models: popularity, or the user's own."""

    def score(self, users: Tensor, items: Tensor, offsets: Tensor) -> Tensor:
        """Scores [B, n_items] of the whole catalogue after the histories ``items``, ``offsets`` (int32 [B + 1])."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics and how they were measured.

    Attributes:
        metrics: ``"HR@10"``, ``"NDCG@10"`` and so on: ``ranking_metrics``, means over users, and ``list_metrics``.
        protocol: data, split, part, candidates, tie rule, cut-offs, seed, device, versions; the "sample" of users (how
            many "of" how many, by which "seed"), None where all take part; how many distinct targets stand in the
            training part ("repeated_targets") and are left out of the ranking ("masked_targets"); what share of the
            best of the largest cut-off are items without a training event ("untrained_share"); targets and users
            without one, and what becomes of them ("cold_targets", "cold_users"); ties in time (in "split").
        seconds: how long it took.
        intervals: 95% confidence intervals of the means over users, with ``per_user`` (``significance.HOW``).
        by: name of a breakdown → a dictionary a group: its name, users, targets, and metrics.
        users: the metrics of each user, with ``per_user``; not in JSON.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any]
    seconds: float
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    by: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    users: UserValues | None = None

    def __getitem__(self, metric: str) -> float:
        name, k = parse_metric(metric)
        return self.metrics[f"{name}@{k}"]

    def to_dict(self) -> dict[str, Any]:
        """All of it but the metrics of each user, ready for JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "users"}

    def to_json(self) -> str:
        """The same, indented."""
        return json.dumps(self.to_dict(), indent=2)


def evaluate(
    model: SequentialRecommender | Scorer,
    split: Split,
    part: Part = "test",
    *,
    ks: Iterable[int] = (10,),
    protocol: RankingProtocol = "full",
    n_negatives: int = 99,
    seed: int = 42,
    mask_seen: MaskSeen = "pair",
    history: History = "all",
    batch_size: int = 256,
    users: int | None = None,
    coverage: bool = True,
    cold: Cold = "miss",
    per_user: bool = False,
    by: Iterable[By] = (),
    ranks: Ranks | None = None,
) -> Evaluation:
    """Ranks the targets of one part of a split.

    Users with a target in the part and a history take part. What is left out of the ranking follows from the training
    part or the history alone: a target that stands there is left out too, and then counts as missed.

    Args:
        model: a model, ranked by ``encode_last`` in evaluation mode without autocast, or a scorer.
        split: on the catalogue that the model was built for.
        part: "validation" or "test".
        ks: cut-offs, each at least 1.
        protocol: "full" ranks the whole catalogue. "sampled" ranks each user's targets among ``n_negatives`` items
            drawn uniformly without repeats from those that are neither seen nor targets (all of them where there are
            fewer); its numbers compare only with others of the same protocol.
        seed: of those draws, and of ``users``; a user's draws do not depend on batch size or number
            of processes.
        mask_seen: the items of the user that the full ranking leaves out. "pair", WarpRec's: those of the user's
            training part. "history": those of the whole history, so in "test" those of validation too. "none". A
            sampled ranking draws no negative that "pair" (also for "none", as WarpRec) or "history" names; only
            "history" masks targets in it.
        history: "all" events before the part's targets, so for "test" the validation targets too, or the "training"
            part alone, as in WarpRec. A split at random has the second only.
        batch_size: users at a time.
        users: evaluate so many of the part's users, drawn without repeats by ``seed`` and nothing else; None, or more
            than there are: all.
        coverage: whether to measure ``list_metrics``, and with ``per_user`` ``novelty_metrics`` (full protocol only).
        cold: "miss": targets whose item has no training event count as misses wherever they are ranked, since a model
            finds them by chance alone. "rank": they count as all others, for scorers that know such items.
        per_user: keep the metrics of each user, 8 bytes each, and give confidence intervals.
        by: breakdowns. "length": quarters of the users by training events. "popularity": targets among the items that
            have the first, second and last third of the training events. A user's targets of one such group are ranked
            as if they were the user's only ones, among the same candidates.
        ranks: processes among which the users are divided. The result is the same in each.

    Raises:
        DataError: if the part has no users to evaluate, or the model was built for other items (or users, if it reads
            them) than the data's: it names the first that differs.
        CheckpointError: if the model's outputs are not finite.
        ValueError: if an argument is out of range.
    """
    if isinstance(ks, str) or not isinstance(ks, Iterable) or not len(ks := list(ks)):
        raise ValueError(f"ks is {ks!r}, expected cut-offs, such as (10,)")
    ks = tuple(sorted({check_integer("a cut-off of ks", value, 1) for value in ks}))
    if protocol not in get_args(RankingProtocol):
        raise ValueError(f"protocol is {protocol!r}, expected 'full' or 'sampled'")
    if mask_seen not in get_args(MaskSeen):
        raise ValueError(f"mask_seen is {mask_seen!r}, expected 'pair', 'history' or 'none'")
    for name, value, low in (("n_negatives", n_negatives, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        check_integer(name, value, low)
    if cold not in get_args(Cold):
        raise ValueError(f"cold is {cold!r}, expected 'miss' or 'rank'")
    by = tuple(by)
    for each in by:
        if each not in get_args(By):
            raise ValueError(f"by has {each!r}, expected 'length' or 'popularity'")
    if users is not None:
        check_integer("users", users, 1)
    started = time.perf_counter()
    ranks = ranks or Ranks()
    if (shards := getattr(model, "shards", None)) is not None:
        ranks = Ranks(shards.rank, shards.world_size)
    n_items = split.interactions.n_items
    cut = (("a cut-off of ks (evaluation.top_k)", ks[-1]), ("n_negatives", n_negatives if protocol == "sampled" else 0))
    for name, value in cut:
        if value > n_items:
            warnings.warn(f"{name} is {value}, cut to the {n_items} items of the catalogue", stacklevel=2)
    n_negatives = min(n_negatives, n_items)
    targets_of_part = split.part(part, history)
    if not len(targets_of_part):
        raise DataError(f"the {part} part has no user with a target and an event before it; choose another split")
    sample = None
    if users is not None and users < (of := len(targets_of_part)):
        drawn_users = np.random.default_rng(seed).choice(of, users, replace=False)
        targets_of_part = targets_of_part.take(np.sort(drawn_users))
        sample = {"users": users, "of": of, "seed": seed}
    device = torch.device("cpu")
    if isinstance(model, SequentialRecommender):
        check_catalogue(model, split.interactions, users=model.needs_user)
        device = model.item_embedding.weight.device
    else:
        batch_size = max(1, min(batch_size, SCORES_AT_ONCE // n_items))
    by_rank = names = list(ranking_metrics(torch.ones(1, 1, dtype=torch.bool), torch.ones(1, dtype=torch.int64), ks))
    n_trained = int((split.train_stop > split.interactions.offsets[:-1]).sum())
    known, listed = None, coverage and protocol == "full"
    if listed and per_user:
        names = by_rank + [f"{name}@{k}" for name in NOVELTY_METRICS for k in ks]
        known = torch.from_numpy(np.stack([split.item_counts(), split.user_counts]).astype(np.int32)).to(device)
    sums = torch.zeros(len(names), dtype=torch.float64, device=device)
    lists = torch.zeros(len(ks) if listed else 0, n_items, dtype=torch.int64, device=device)
    counts = torch.zeros(2, dtype=torch.int64)
    targets, _, _ = _gather(split.interactions.items, targets_of_part.target_start, targets_of_part.target_stop)
    n_cold = int((~split.trained_items[targets]).sum())
    trained = torch.from_numpy(split.trained_items).to(device) if n_cold and cold == "miss" else None
    n_kept = -(-len(targets_of_part) // ranks.world_size) if per_user or "length" in by else 0
    kept, done = torch.zeros(n_kept, len(names), dtype=torch.float64, device=device if n_kept else None), 0
    kinds = breakdown.popularity_groups(split) if "popularity" in by else None
    kind_of = torch.from_numpy(kinds.of).to(device) if kinds is not None else None
    # Sums of metrics, then users and targets, by the group of the target.
    of_kinds = torch.zeros(len(kinds.names) if kinds else 0, len(by_rank) + 2, dtype=torch.float64)
    of_kinds = of_kinds if kinds is None else of_kinds.to(device)
    evaluating_some = f"evaluating {batch_size} users at a time"
    still: Any
    with (
        evaluating(model) if isinstance(model, SequentialRecommender) else nullcontext(model) as still,
        memory_named(device, evaluating_some, "lower evaluation.batch_size (evaluation_batch_size)"),
    ):
        source = _source(still)
        batches = _batches(split, targets_of_part, batch_size, ranks, source.max_len, mask_seen, protocol, kinds)
        if protocol == "sampled":
            drawn = n_items, n_negatives, (seed, int(part == "test"))
            batches = (replace(here, candidates=_sampled_candidates(here, *drawn)) for here in batches)
        # While a GPU ranks some users, a thread makes the next ones ready.
        for here in prefetched(batches, 2) if device.type == "cuda" else batches:
            counts += torch.tensor([here.n_repeated, here.n_masked])
            there = here.to(device, non_blocking=True)
            source.read(there)
            if there.candidates is None:
                scores, items = source.best(there, min(n_items, ks[-1] + here.most_targets))
            else:
                items, scores = there.candidates, source.at(there.candidates)
            target = there.is_target(items)
            if trained is not None:
                target &= trained[items.clamp(min=0)]
            values = ranking_metrics(worst_order(scores, target), there.n_targets, ks, here.most_targets)
            if known is not None:
                values |= novelty_metrics(items, known, n_trained, ks)
            sums += torch.stack([value.sum() for value in values.values()])
            if n_kept:
                kept[done : done + len(here.users)] = torch.stack([values[name] for name in names], dim=1)
                done += len(here.users)
            for kind, row in enumerate(of_kinds):
                assert kind_of is not None and there.kind_targets is not None
                n_targets = there.kind_targets[kind]
                relevant = worst_order(scores, target & (kind_of[items.clamp(min=0)] == kind))
                of_kind = ranking_metrics(relevant, n_targets.clamp(min=1), ks, here.most_targets)
                found = [*of_kind.values(), n_targets > 0, n_targets]
                row += torch.stack([value.double().sum() for value in found])
            for count, k in zip(lists, ks, strict=False):
                best = items[:, :k].reshape(-1)
                count.index_add_(0, best.clamp(min=0), (best >= 0).long())
    # The one look at the device, but for users and breakdowns: float64 sums by their bits.
    read = torch.cat([source.diverged.long().view(1), sums.view(torch.int64), lists.view(-1)]).cpu()
    if read[0]:
        raise diverged(model)
    sums, lists = ranks.sum(read[1 : 1 + len(names)].view(torch.float64)), read[1 + len(names) :].view(lists.shape)
    of_users = _of_all_users(kept.cpu(), len(targets_of_part), ranks)
    broken: dict[str, list[dict[str, Any]]] = {}
    if "length" in by:
        groups = breakdown.length_groups(split, targets_of_part)
        members = np.arange(len(groups.names))[:, None] == groups.of
        broken["length"] = breakdown.rows(groups, {"users": members.sum(1)}, names, members @ of_users)
    if kinds is not None:
        table = ranks.sum(of_kinds.cpu()).numpy()
        sizes = {"users": table[:, -2], "targets": table[:, -1]}
        broken["popularity"] = breakdown.rows(kinds, sizes, by_rank, table[:, :-2])
    metrics = {name: value / len(targets_of_part) for name, value in zip(names, sums.tolist(), strict=True)}
    untrained = None
    if listed:
        lists = ranks.sum(lists)
        for k, row in zip(ks, lists, strict=True):
            metrics |= list_metrics(row, len(targets_of_part), k)
        untrained = float(lists[-1][torch.from_numpy(~split.trained_items)].sum() / lists[-1].sum().clamp(min=1))
        if untrained > 0.01:
            warnings.warn(
                f"{untrained:.0%} of all best {ks[-1]} are items without a training event: the model ranks them by "
                "chance. Split.warm() (in a configuration: splitter.cold: drop) leaves them out",
                stacklevel=2,
            )
    repeated, masked = ranks.sum(counts).tolist()
    without, their_targets = split.left_out(part, history)
    untrained_users = int((split.train_stop == split.interactions.offsets[:-1])[targets_of_part.users].sum())
    described = {
        "model": type(model).__name__,
        "part": part,
        "users": len(targets_of_part),
        "sample": sample,
        "targets": targets_of_part.n_targets,
        "ranking": protocol,
        "candidates": _describe_candidates(protocol, n_negatives, mask_seen),
        "mask_seen": mask_seen,
        "repeated_targets": repeated,
        "masked_targets": masked,
        "untrained_share": untrained,
        "cold_targets": {"targets": n_cold, "count_as": "misses" if cold == "miss" else "all others"},
        "cold_users": {"ranked": untrained_users, "left_out": without, "left_out_targets": their_targets},
        "ties": "pessimistic: every candidate that ties with a target ranks above it",
        "history": "all events before the targets" if history == "all" and split.in_time else "training part",
        "max_seq_len": source.max_len,
        "ks": list(ks),
        "seed": seed if protocol == "sampled" else None,
        "split": split.describe(),
        "device": device_name(device),
        "versions": {
            "fastseq": _version.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    per, intervals = None, {}
    if per_user:
        per = UserValues(targets_of_part.users, tuple(names), of_users, described)
        intervals = significance.intervals(per, seed)
        described["intervals"] = significance.HOW
    return Evaluation(metrics, described, time.perf_counter() - started, intervals, broken, per)


def _of_all_users(mine: Tensor, n: int, ranks: Ranks) -> NDArray[np.float64]:
    """The metrics of all ``n`` users, in their order, from those that each process has ranked; [0, M] of none kept."""
    if len(mine) and ranks.world_size > 1:
        mine = torch.stack(ranks.gather(mine), dim=1).flatten(0, 1)[:n]
    return mine.numpy()


def _source(model: SequentialRecommender | Scorer) -> _ModelSource | _ScorerSource:
    if not isinstance(model, SequentialRecommender):
        return _ScorerSource(model)
    return _ModelSource(model) if model.shards is None else _ShardedSource(model)


def _describe_candidates(protocol: str, n_negatives: int, mask_seen: MaskSeen) -> str:
    where = "history" if mask_seen == "history" else "training part"
    if protocol == "full":
        left_out = f"items of the user's {where} left out, target or not"
        return f"the whole catalogue, {'seen items included' if mask_seen == 'none' else left_out}"
    kept = "targets outside the history" if mask_seen == "history" else "targets"
    return (
        f"the user's {kept} and {n_negatives} items drawn uniformly without repeats from those that are neither in the "
        f"{where} nor targets"
    )


@dataclass
class _Users(Packed):
    """One batch of users: histories, what is filtered, and targets, all jagged.

    Attributes:
        users: int64 [B].
        items, offsets, max_len: histories, cut to the model's length; int64 [T], int32 [B + 1].
        seen_items, seen_offsets: items to leave out of the ranking, increasing.
        ranked: int64 [m], increasing, row · n_items + item of the distinct targets that are ranked.
        n_targets: int64 [B], distinct targets, also those that are left out of the ranking; most_targets: of a user.
        n_repeated, n_masked: distinct targets that stand in the training part, and those left out of the ranking.
        candidates: int64 [B, C], what is ranked, −1 where there are fewer; None: the catalogue.
        kind_targets: int64 [groups, B], ``n_targets`` of each group of items; None without groups.
    """

    users: Tensor
    items: Tensor
    offsets: Tensor
    max_len: int
    seen_items: Tensor
    seen_offsets: Tensor
    ranked: Tensor
    n_targets: Tensor
    most_targets: int
    n_items: int
    n_repeated: int
    n_masked: int
    candidates: Tensor | None = None
    kind_targets: Tensor | None = None

    def is_target(self, items: Tensor) -> Tensor:
        """Whether each of ``items`` [B, C] (−1: none) is a target of its row."""
        if not len(self.ranked):
            return torch.zeros_like(items, dtype=torch.bool)
        asked = torch.arange(items.shape[0], device=items.device).unsqueeze(1) * self.n_items + items
        nearest = torch.searchsorted(self.ranked, asked).clamp_(max=len(self.ranked) - 1)
        return (self.ranked[nearest] == asked) & (items >= 0)


def _batches(
    split: Split,
    part: EvalPart,
    size: int,
    ranks: Ranks,
    max_len: int | None,
    mask: MaskSeen,
    protocol: str,
    kinds: Groups | None,
) -> Iterator[_Users]:
    data = split.interactions
    mine = np.arange(ranks.rank, len(part), ranks.world_size)
    for first in range(0, -(-len(part) // ranks.world_size), size):  # as many batches in all ranks, the last one empty
        rows = mine[first : first + size]
        start, stop = part.history_start[rows], part.history_stop[rows]
        recent = start if max_len is None else np.maximum(start, stop - max_len)
        items, _, offsets = _gather(data.items, recent, stop)
        targets = _pairs(data, part.target_start[rows], part.target_stop[rows])
        trained = _pairs(data, start, split.train_stop[part.users[rows]])
        seen = _pairs(data, start, stop) if mask == "history" else trained
        if mask == "none" and protocol == "full":
            seen = seen[:0]
        # WarpRec's sampled candidates hold every target.
        ranked = targets if mask != "history" and protocol == "sampled" else np.setdiff1d(targets, seen, True)
        edges = np.arange(len(rows) + 1) * data.n_items
        n_targets = np.diff(np.searchsorted(targets, edges))
        kind_targets = None
        if kinds is not None:
            cells = kinds.of[targets % data.n_items] * len(rows) + targets // data.n_items
            table = np.bincount(cells, minlength=len(kinds.names) * len(rows))
            kind_targets = torch.from_numpy(table).view(len(kinds.names), len(rows))
        yield _Users(
            users=torch.from_numpy(part.users[rows]),
            items=torch.from_numpy(items),
            offsets=torch.from_numpy(offsets),
            max_len=int(np.diff(offsets).max(initial=0)),
            seen_items=torch.from_numpy(seen % data.n_items),
            seen_offsets=torch.from_numpy(np.searchsorted(seen, edges).astype(np.int32)),
            ranked=torch.from_numpy(ranked),
            n_targets=torch.from_numpy(n_targets),
            most_targets=int(n_targets.max(initial=0)),
            n_items=data.n_items,
            n_repeated=len(np.intersect1d(targets, trained, True)),
            n_masked=len(targets) - len(ranked),
            kind_targets=kind_targets,
        )


def _pairs(data: Interactions, start: Int64Array, stop: Int64Array) -> Int64Array:
    """Distinct row · n_items + item of the stretches ``data.items[start:stop]``, increasing."""
    items, rows, _ = _gather(data.items, start, stop)
    return np.unique(rows * data.n_items + items)


def _gather(tape: Int64Array, start: Int64Array, stop: Int64Array) -> tuple[Int64Array, Int64Array, NDArray[np.int32]]:
    """The stretches ``tape[start:stop]`` in a row: values [T], the stretch of each [T], offsets int32 [B + 1]."""
    lengths = stop - start
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.repeat(np.arange(len(start)), lengths)
    return tape[np.arange(offsets[-1]) + (start - offsets[:-1])[rows]], rows, offsets.astype(np.int32)


def _sampled_candidates(users: _Users, n_items: int, n_negatives: int, seed: tuple[int, int]) -> Tensor:
    """Targets that are ranked, then negatives, of each user: int64 [B, C], filled up with −1."""
    target_rows, targets = np.divmod(users.ranked.numpy(), n_items)
    stops = np.searchsorted(target_rows, np.arange(len(users.users) + 1))
    most = int(np.diff(stops).max(initial=0))
    candidates = np.full((len(users.users), most + n_negatives), -1, np.int64)
    candidates[target_rows, np.arange(len(targets)) - stops[target_rows]] = targets
    seen, offsets = users.seen_items.numpy(), users.seen_offsets.numpy()
    for row, user in enumerate(users.users.tolist()):
        excluded = np.union1d(targets[stops[row] : stops[row + 1]], seen[offsets[row] : offsets[row + 1]])
        left = n_items - len(excluded)
        generator = np.random.Generator(np.random.Philox(key=[seed[0], 2 * user + seed[1]]))
        drawn = generator.choice(left, min(n_negatives, left), replace=False, shuffle=False)
        # The j-th item that is not excluded is j plus the number of excluded items before it.
        drawn += np.searchsorted(excluded - np.arange(len(excluded)), drawn, side="right")
        candidates[row, most : most + len(drawn)] = drawn
    return torch.from_numpy(candidates)


class _ModelSource:
    """A model's scores of one batch of users at a time, from hidden states: only a user's best items are ever kept."""

    def __init__(self, model: SequentialRecommender) -> None:
        self._model = model
        self.max_len: int | None = model.max_seq_len
        weight = model.item_embedding.weight
        # On a CPU ranking refuses a NaN score; on a GPU it would leave such an item out.
        self.diverged = torch.tensor(False) if weight.device.type == "cpu" else ~torch.isfinite(weight).all()

    def read(self, users: _Users) -> None:
        """Takes the next batch, on the model's device; ``diverged`` says whether an output so far was not finite."""
        self._h = self._model.encode_last(users.items, users.offsets, users.users, users.max_len, False)
        self.diverged = self.diverged | ~torch.isfinite(self._h).all()
        if self._h.device.type == "cpu" and self.diverged:  # a GPU is not waited for
            raise diverged(self._model)

    def best(self, users: _Users, k: int) -> tuple[Tensor, Tensor]:
        """Scores and items [B, k] of the best that are not filtered; −inf and −1 where there are fewer."""
        return self._model.best(self._h, k, users.seen_offsets, users.seen_items, seen_sorted=True)

    def at(self, items: Tensor) -> Tensor:
        """Scores [B, C] of ``items`` [B, C]; −inf where an item is −1."""
        return self._model.score_checked(self._h, items.clamp(min=0)).masked_fill_(items < 0, float("-inf"))


class _ShardedSource(_ModelSource):
    """The same of a model whose tables are divided: each process ranks the users of all among its own items."""

    def best(self, users: _Users, k: int) -> tuple[Tensor, Tensor]:
        shards = self._model.shards
        assert shards is not None
        states, most = shards.gather(self._h), max(shards.gather(torch.tensor([k], device=self._h.device)))
        seen_counts = torch.cat(shards.gather(users.seen_offsets.diff()))
        seen_offsets = torch.cat([seen_counts.new_zeros(1), seen_counts.cumsum(0)])
        seen_items = torch.cat(shards.gather(users.seen_items))
        scores, items = self._model.best(torch.cat(states), int(most), seen_offsets, seen_items)
        mine = slice(first := sum(map(len, states[: shards.rank])), first + len(self._h))
        return scores[mine, :k], items[mine, :k]

    def at(self, items: Tensor) -> Tensor:
        scores = self._model.scores_of(self._h, items.clamp(min=0))
        return scores.masked_fill_(items < 0, float("-inf"))


class _ScorerSource:
    """The same of a scorer, from whole rows of the catalogue."""

    max_len: int | None = None
    diverged = torch.tensor(False)

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def read(self, users: _Users) -> None:
        self._scores = self._scorer.score(users.users, users.items, users.offsets)
        shape = (len(users.users), users.n_items)
        if tuple(self._scores.shape) != shape:
            raise ValueError(f"the scorer gave scores {list(self._scores.shape)}, expected {list(shape)}")
        if torch.isnan(self._scores).any():
            raise ValueError(f"{type(self._scorer).__name__} gave NaN scores")

    def best(self, users: _Users, k: int) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(users.users)).repeat_interleave(users.seen_offsets.diff().long())
        scores = self._scores.index_put((rows, users.seen_items), self._scores.new_tensor(float("-inf")))
        best = scores.topk(k, dim=1)
        return best.values, best.indices.masked_fill(best.values == float("-inf"), -1)

    def at(self, items: Tensor) -> Tensor:
        return self._scores.gather(1, items.clamp(min=0)).masked_fill(items < 0, float("-inf"))
