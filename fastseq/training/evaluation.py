"""Ranking evaluation: every score with the protocol it was measured by.

A user's targets are ranked among the candidates by score. Ties are broken against the targets: every other candidate
with the same score ranks above them, so a model that scores everything alike gets nothing. Only as many of the
best candidates as the largest cut-off needs are ever held, and users × items scores never.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastseq import _version, ops
from fastseq.data.split import EvalPart, Part, Split
from fastseq.errors import CheckpointError, DataError
from fastseq.models.base import SequentialRecommender
from fastseq.models.recommend import evaluating

from .distributed import Ranks
from .metrics import COVERAGE, parse_metric, ranking_metrics, worst_order

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
        metrics: ``"HR@10"``, ``"NDCG@10"``, ``"MRR@10"``, ``"Recall@10"``, ``"Precision@10"`` (means over users, in
            0 … 1) and ``"Coverage@10"`` (the share of the catalogue that occurs in some user's best 10).
        protocol: data, split, part, candidates, filter, tie rule, cut-offs, seed and versions.
        seconds: how long it took.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any]
    seconds: float

    def __getitem__(self, metric: str) -> float:
        name, k = parse_metric(metric)
        return self.metrics[f"{name}@{k}"]

    def to_json(self) -> str:
        """All of it, indented."""
        return json.dumps(asdict(self), indent=2)


def evaluate(
    model: SequentialRecommender | Scorer,
    split: Split,
    part: Part = "test",
    *,
    ks: Sequence[int] = (10,),
    protocol: Literal["full", "sampled"] = "full",
    n_negatives: int = 100,
    seed: int = 42,
    filter_seen: bool = True,
    batch_size: int = 256,
    coverage: bool = True,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Ranks the targets of one part of a split.

    Users with a target in the part and at least one event before it take part; their history is every event
    before the part's targets (for "test" it includes the validation targets).

    Args:
        model: a model, ranked by ``encode_last`` in evaluation mode without autocast, or a scorer.
        split: on the catalogue that the model was built for.
        part: "validation" or "test".
        ks: cut-offs, each at least 1.
        protocol: "full" ranks the whole catalogue. "sampled" ranks each user's targets among ``n_negatives`` items
            drawn uniformly without repeats from those that are neither in the history nor targets (all of them
            where there are fewer); its numbers compare only with others of the same protocol.
        seed: of those draws; a user's do not depend on batch size or number of processes.
        filter_seen: whether items of the history are left out of the ranking. A target never is.
        batch_size: users at a time.
        coverage: whether to measure it (full protocol only).
        ranks: processes among which the users are divided. The result is the same in each.

    Raises:
        DataError: if the part has no users to evaluate, or the model was built for another number of items.
        CheckpointError: if the model's outputs are not finite.
        ValueError: if an argument is out of range.
    """
    ks = tuple(sorted(set(ks)))
    if not ks or ks[0] < 1:
        raise ValueError(f"ks is {ks}, expected cut-offs of at least 1")
    if protocol not in ("full", "sampled"):
        raise ValueError(f"protocol is {protocol!r}, expected 'full' or 'sampled'")
    for name, value in (("n_negatives", n_negatives), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    started = time.perf_counter()
    ranks = ranks or Ranks()
    n_items = split.interactions.n_items
    targets_of_part = split.part(part)
    if not len(targets_of_part):
        raise DataError(f"the {part} part has no user with a target and an event before it; choose another split")
    if isinstance(model, SequentialRecommender):
        if model.n_items != n_items:
            raise DataError(f"the model was built for {model.n_items} items, the data has {n_items}")
        source: _ModelSource | _ScorerSource = _ModelSource(model)
    else:
        source = _ScorerSource(model)
        batch_size = max(1, min(batch_size, SCORES_AT_ONCE // n_items))
    covered = torch.zeros(len(ks), n_items, dtype=torch.int64) if coverage and protocol == "full" else None
    sums: dict[str, Tensor] = {}
    with evaluating(model) if isinstance(model, SequentialRecommender) else nullcontext() as still:
        if still is not None:
            source = _ModelSource(still)
        for users in _batches(split, targets_of_part, batch_size, ranks, source.max_len, filter_seen):
            source.read(users)
            if protocol == "full":
                width = min(n_items, ks[-1] + int(users.n_targets.max()))
                scores, items = source.best(users, width)
            else:
                items = _sampled_candidates(users, n_items, n_negatives, (seed, int(part == "test")), filter_seen)
                scores = source.at(items)
            relevant = worst_order(scores, users.is_target(items))
            for name, values in ranking_metrics(relevant, users.n_targets, ks).items():
                sums[name] = sums.get(name, 0.0) + values.sum()
            if covered is not None:
                for row, k in enumerate(ks):
                    best = items[:, :k].reshape(-1)
                    covered[row, best[best >= 0]] = 1
    metrics = _means(sums, ks, len(targets_of_part), ranks)
    if covered is not None:
        shares = (ranks.sum(covered) > 0).double().mean(dim=1).tolist()
        metrics |= {f"{COVERAGE}@{k}": share for k, share in zip(ks, shares, strict=True)}
    described = {
        "model": type(model).__name__,
        "part": part,
        "users": len(targets_of_part),
        "targets": targets_of_part.n_targets,
        "ranking": protocol,
        "candidates": _describe_candidates(protocol, n_negatives, filter_seen),
        "filter_seen": filter_seen,
        "ties": "pessimistic: every candidate that ties with a target ranks above it",
        "history": "all events before the part's targets",
        "max_seq_len": source.max_len,
        "ks": list(ks),
        "seed": seed if protocol == "sampled" else None,
        "split": split.describe(),
        "versions": {
            "fastseq": _version.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    return Evaluation(metrics, described, time.perf_counter() - started)


def _means(sums: dict[str, Tensor], ks: tuple[int, ...], n_users: int, ranks: Ranks) -> dict[str, float]:
    """Sums over this rank's users to means over all users; a rank without users has no sums."""
    names = list(ranking_metrics(torch.ones(1, 1, dtype=torch.bool), torch.ones(1, dtype=torch.int64), ks))
    total = torch.tensor([float(sums.get(name, 0.0)) for name in names], dtype=torch.float64)
    return {name: value / n_users for name, value in zip(names, ranks.sum(total).tolist(), strict=True)}


def _describe_candidates(protocol: str, n_negatives: int, filter_seen: bool) -> str:
    history = "items of the user's history left out unless they are targets" if filter_seen else "seen items included"
    if protocol == "full":
        return f"the whole catalogue, {history}"
    drawn = "neither in the history nor targets" if filter_seen else "not targets"
    return f"the user's targets and {n_negatives} items drawn uniformly without repeats from those that are {drawn}"


@dataclass(frozen=True)
class _Users:
    """One batch of users: histories, what is filtered, and targets, all jagged.

    Attributes:
        users: int64 [B].
        items, offsets, max_len: histories, cut to the model's length; int64 [T], int32 [B + 1].
        seen_items, seen_offsets: items to leave out of the ranking: the whole history without targets.
        targets: int64 [m], distinct targets, user after user; target_rows: int64 [m], their row.
        n_targets: int64 [B].
    """

    users: Tensor
    items: Tensor
    offsets: Tensor
    max_len: int
    seen_items: Tensor
    seen_offsets: Tensor
    targets: Tensor
    target_rows: Tensor
    n_targets: Tensor
    n_items: int

    def is_target(self, items: Tensor) -> Tensor:
        """Whether each of ``items`` [B, C] (−1: none) is a target of its row."""
        rows = torch.arange(items.shape[0]).unsqueeze(1) * self.n_items
        return torch.isin(rows + items, self.target_rows * self.n_items + self.targets) & (items >= 0)


def _batches(
    split: Split, part: EvalPart, size: int, ranks: Ranks, max_len: int | None, filter_seen: bool
) -> Iterator[_Users]:
    data = split.interactions
    mine = np.arange(ranks.rank, len(part), ranks.world_size)
    for first in range(0, len(mine), size):
        rows = mine[first : first + size]
        start, stop = part.history_start[rows], part.history_stop[rows]
        whole, whole_rows, _ = _gather(data.items, start, stop)
        recent = start if max_len is None else np.maximum(start, stop - max_len)
        items, _, offsets = _gather(data.items, recent, stop)
        targets, target_rows, _ = _gather(data.items, part.target_start[rows], part.target_stop[rows])
        pairs = np.unique(target_rows * data.n_items + targets)
        seen = np.empty(0, np.int64)
        if filter_seen:
            seen = np.setdiff1d(whole_rows * data.n_items + whole, pairs)
        edges = np.arange(len(rows) + 1) * data.n_items
        yield _Users(
            users=torch.from_numpy(part.users[rows]),
            items=torch.from_numpy(items),
            offsets=torch.from_numpy(offsets),
            max_len=int(np.diff(offsets).max()),
            seen_items=torch.from_numpy(seen % data.n_items),
            seen_offsets=torch.from_numpy(np.searchsorted(seen, edges).astype(np.int32)),
            targets=torch.from_numpy(pairs % data.n_items),
            target_rows=torch.from_numpy(pairs // data.n_items),
            n_targets=torch.from_numpy(np.diff(np.searchsorted(pairs, edges))),
            n_items=data.n_items,
        )


def _gather(tape: Int64Array, start: Int64Array, stop: Int64Array) -> tuple[Int64Array, Int64Array, NDArray[np.int32]]:
    """The stretches ``tape[start:stop]`` in a row: values [T], the stretch of each [T], offsets int32 [B + 1]."""
    lengths = stop - start
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.repeat(np.arange(len(start)), lengths)
    return tape[np.arange(offsets[-1]) + (start - offsets[:-1])[rows]], rows, offsets.astype(np.int32)


def _sampled_candidates(
    users: _Users, n_items: int, n_negatives: int, seed: tuple[int, int], filter_seen: bool
) -> Tensor:
    """Targets, then negatives, of each user: int64 [B, C], filled up with −1."""
    size, most = len(users.users), int(users.n_targets.max())
    candidates = np.full((size, most + n_negatives), -1, np.int64)
    target_rows, targets = users.target_rows.numpy(), users.targets.numpy()
    stops = np.concatenate([[0], np.cumsum(users.n_targets.numpy())])
    candidates[target_rows, np.arange(len(targets)) - stops[target_rows]] = targets
    seen, offsets = users.seen_items.numpy(), users.seen_offsets.numpy()
    for row, user in enumerate(users.users.tolist()):
        excluded = targets[stops[row] : stops[row + 1]]
        if filter_seen:
            excluded = np.sort(np.concatenate([excluded, seen[offsets[row] : offsets[row + 1]]]))
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

    def read(self, users: _Users) -> None:
        """Takes the next batch."""
        device = self._model.item_embedding.weight.device
        indices = users.users.to(device)
        self._h = self._model.encode_last(users.items.to(device), users.offsets.to(device), indices, users.max_len)
        if not torch.isfinite(self._h).all():
            raise CheckpointError(
                f"{type(self._model).__name__} gives outputs that are not finite: its training has diverged; "
                "go back to an earlier checkpoint or train with a lower learning rate"
            )

    def best(self, users: _Users, k: int) -> tuple[Tensor, Tensor]:
        """Scores and items [B, k] of the best that are not filtered; −inf and −1 where there are fewer."""
        weight = self._model.item_embedding.weight[:-1]
        device = weight.device
        scores, items = ops.topk(
            self._h.to(weight.dtype),
            weight,
            k,
            seen_offsets=users.seen_offsets.to(device),
            seen_items=users.seen_items.to(device),
        )
        return scores.cpu(), items.cpu()

    def at(self, items: Tensor) -> Tensor:
        """Scores [B, C] of ``items`` [B, C]; −inf where an item is −1."""
        scores = self._model.score(self._h, items.clamp(min=0).to(self._h.device)).cpu()
        return scores.masked_fill_(items < 0, float("-inf"))


class _ScorerSource:
    """The same of a scorer, from whole rows of the catalogue."""

    max_len: int | None = None

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
