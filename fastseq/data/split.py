"""Splits: two boundaries for each user on the tape."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fastseq.errors import DataError, check_integer
from fastseq.native import _C

from .ids import Int64Array
from .interactions import Interactions, take
from .times import microseconds

Part: TypeAlias = Literal["validation", "test"]
History: TypeAlias = Literal["all", "training"]
TRAINING, VALIDATION, TEST, GONE = range(4)


@dataclass(frozen=True, eq=False)
class EvalPart:
    """Whom to evaluate in one part, and on what; all int64 [n], boundaries on the tape ``Interactions.items``.

    Attributes:
        users: user indices, increasing; those with at least one target and a history.
        history_start, history_stop: the history.
        target_start, target_stop: the targets.
    """

    users: Int64Array
    history_start: Int64Array
    history_stop: Int64Array
    target_start: Int64Array
    target_stop: Int64Array

    def __len__(self) -> int:
        return len(self.users)

    @property
    def n_targets(self) -> int:
        return int((self.target_stop - self.target_start).sum())

    def take(self, rows: Int64Array) -> EvalPart:
        """Those of the users that stand at ``rows``."""
        return EvalPart(*(getattr(self, each.name)[rows] for each in fields(self)))


@dataclass(frozen=True, eq=False)
class Split:
    """Three consecutive stretches of every user's events: training, validation, test (the last two may be empty).

    Attributes:
        interactions: the tape that is split.
        train_stop: int64 [n_users]; training events of user u are ``items[offsets[u]:train_stop[u]]``.
        validation_stop: int64 [n_users]; validation targets are ``items[train_stop[u]:validation_stop[u]]``, test
            targets ``items[validation_stop[u]:offsets[u + 1]]``.
        strategy: name of the function that made the split.
        parameters: its arguments.
        in_time: whether the parts of a user follow each other in time; where not, each of the three is in time order
            and a history is the training part.
        dropped: how many ``"validation"`` and ``"test"`` events ``warm`` left out, and how many ``"short_users"`` a
            splitter.
    """

    interactions: Interactions
    train_stop: Int64Array
    validation_stop: Int64Array
    strategy: str = "custom"
    parameters: dict[str, Any] = field(default_factory=dict)
    in_time: bool = True
    dropped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        offsets = self.interactions.offsets
        stops = [offsets[:-1], self.train_stop, self.validation_stop, offsets[1:]]
        for name, stop in (("train_stop", self.train_stop), ("validation_stop", self.validation_stop)):
            if stop.shape != (self.interactions.n_users,) or stop.dtype != np.int64:
                raise ValueError(
                    f"{name} is {stop.dtype} {list(stop.shape)}, expected int64 [{self.interactions.n_users}]"
                )
        for before, after in pairwise(stops):
            if (before > after).any():
                user = int(np.argmax(before > after))
                raise ValueError(
                    f"user {user}: expected start <= train_stop <= validation_stop <= end, got "
                    + " <= ".join(str(stop[user]) for stop in stops)
                )

    @property
    def n_train(self) -> int:
        """Training events."""
        return int((self.train_stop - self.interactions.offsets[:-1]).sum())

    def part(self, name: Part, history: History = "all") -> EvalPart:
        """The users, histories and targets of ``"validation"`` or ``"test"``.

        A history is all events before the part's targets, or the user's "training" part alone.
        """
        start, end = self.interactions.offsets[:-1], self.interactions.offsets[1:]
        if name == "validation":
            first, stop = self.train_stop, self.validation_stop
        elif name == "test":
            first, stop = self.validation_stop, end
        else:
            raise ValueError(f"part is {name!r}, expected 'validation' or 'test'")
        if history not in ("all", "training"):
            raise ValueError(f"history is {history!r}, expected 'all' or 'training'")
        known = first if history == "all" and self.in_time else self.train_stop
        users = np.flatnonzero((stop > first) & (known > start))
        return EvalPart(users, start[users], known[users], first[users], stop[users])

    def left_out(self, name: Part, history: History = "all") -> tuple[int, int]:
        """How many users have targets in a part but no history, so that ``part`` leaves them out; and their targets."""
        first, stop = {
            "validation": (self.train_stop, self.validation_stop),
            "test": (self.validation_stop, self.interactions.offsets[1:]),
        }[name]
        targets, ranked = stop - first, self.part(name, history)
        return int((targets > 0).sum()) - len(ranked), int(targets.sum()) - ranked.n_targets

    def seen(self) -> tuple[Int64Array, Int64Array]:
        """What each user has seen in training, for negative sampling; made once. Not to be changed in place.

        Returns:
            offsets int64 [n_users + 1] and items int64 [m]: user u's distinct training items, increasing, are
            ``items[offsets[u]:offsets[u + 1]]``.
        """
        return self._seen

    @cached_property
    def _seen(self) -> tuple[Int64Array, Int64Array]:
        users, items = self._training_events()
        offsets = np.empty(self.interactions.n_users + 1, np.int64)
        ordered, unread = np.empty_like(items), np.empty_like(items)
        # The tape's sort with items in place of times: each user's events by item.
        codes = (users.astype(np.int32), items.astype(np.int32))
        _C.build_tape(*codes, items, offsets, unread, ordered, torch.get_num_threads())
        new = np.ones(len(items), np.bool_)
        new[1:] = ordered[1:] != ordered[:-1]
        new[offsets[:-1][np.diff(offsets) > 0]] = True
        return np.concatenate([[0], np.cumsum(new)])[offsets], ordered[new]

    def item_counts(self) -> Int64Array:
        """Training events of each item, int64 [n_items]; made once. Not to be changed in place."""
        return self._item_counts

    @cached_property
    def _item_counts(self) -> Int64Array:
        return np.bincount(self._training_events()[1], minlength=self.interactions.n_items)

    @cached_property
    def user_counts(self) -> Int64Array:
        """Users who have each item in their training part, int64 [n_items]; made once."""
        data, counts = self.interactions, np.zeros(self.interactions.n_items, np.int64)
        # Some users at a time, so that memory is bounded.
        cuts = np.searchsorted(data.offsets, np.arange(0, data.n_events, 1 << 20))
        for first, last in pairwise([*np.unique(cuts).tolist(), data.n_users]):
            lengths = self.train_stop[first:last] - data.offsets[first:last]
            rows = np.repeat(np.arange(last - first), lengths)
            at = np.arange(len(rows)) + np.repeat(data.offsets[first:last] - np.cumsum(lengths) + lengths, lengths)
            pairs = np.unique(rows * data.n_items + data.items[at])
            np.add.at(counts, pairs % data.n_items, 1)
        return counts

    @cached_property
    def trained_items(self) -> NDArray[np.bool_]:
        """Whether each item has a training event, [n_items]."""
        return self.item_counts() > 0

    def warm(self) -> Split:
        """The same split without held-out events whose user or item has no training event, as WarpRec evaluates.

        Users and items without an event leave the catalogue: what was never trained is neither ranked nor recommended.
        """
        data, users, rows = self.interactions, self.interactions.event_users, np.arange(self.interactions.n_events)
        parts = (rows >= self.train_stop[users]).astype(np.int8) + (rows >= self.validation_stop[users])
        cold = ~(self.trained_items[data.items] & (self.train_stop > data.offsets[:-1])[users])
        counts = np.bincount(parts[cold], minlength=3).tolist()
        if not cold.any():
            return self
        parts[cold] = GONE
        dropped = self.dropped | {"validation": counts[VALIDATION], "test": counts[TEST]}
        return replace(split_by_parts(data, parts, self.strategy, self.parameters, self.in_time), dropped=dropped)

    @cached_property
    def _cold_targets(self) -> dict[str, int]:
        """Targets whose item has no training event, by part."""
        before = np.concatenate([[0], np.cumsum(~self.trained_items[self.interactions.items])])
        parts = {"validation": self.part("validation"), "test": self.part("test")}
        return {name: int((before[p.target_stop] - before[p.target_start]).sum()) for name, p in parts.items()}

    @cached_property
    def ties(self) -> dict[str, Any]:
        """The share of events tied in time, and for how many users of a part the source's order, not time, decides
        which event is its first target; None without timestamps, or where parts do not follow each other in time."""
        times = self.interactions.timestamps if self.in_time else None
        if times is None:
            return {"tied_events_share": None, "validation_users_cut_in_ties": None, "test_users_cut_in_ties": None}
        cuts = {f"{name}_users_cut_in_ties": self.part(name).target_start for name in ("validation", "test")}
        tied = {name: int((times[cut] == times[cut - 1]).sum()) for name, cut in cuts.items()}
        return {"tied_events_share": self.interactions.tied_share, **tied}

    def _training_events(self) -> tuple[Int64Array, Int64Array]:
        """User and item of every training event."""
        data = self.interactions
        users = data.event_users
        kept = np.arange(data.n_events) < self.train_stop[users]
        return users[kept], data.items[kept]

    def describe(self) -> dict[str, Any]:
        """What a score must say about its split: plain values, ready for JSON."""
        data, validation, test = self.interactions, self.part("validation"), self.part("test")
        return {
            "strategy": self.strategy,
            "parameters": dict(self.parameters),
            "data_hash": data.data_hash,
            "split_hash": hashlib.sha256(np.concatenate([self.train_stop, self.validation_stop]).tobytes()).hexdigest(),
            "users": data.n_users,
            "items": data.n_items,
            "events": data.n_events,
            "filters": list(data.filters),
            "train_events": self.n_train,
            "validation_users": len(validation),
            "validation_targets": validation.n_targets,
            "test_users": len(test),
            "test_targets": test.n_targets,
            "items_without_training": int((~self.trained_items).sum()),
            "validation_targets_without_training": self._cold_targets["validation"],
            "test_targets_without_training": self._cold_targets["test"],
            **self.ties,
            "dropped": dict(self.dropped),
        }


def leave_one_out(interactions: Interactions, validation: bool = True) -> Split:
    """Each user's last event is for testing, the one before it for validation (where asked).

    A user with too few events to leave one for training keeps all of them in training.
    """
    result = leave_k_out(interactions, 1, validation=validation)
    return Split(interactions, result.train_stop, result.validation_stop, "leave_one_out", {"validation": validation})


def leave_k_out(interactions: Interactions, k: int, validation: bool = True) -> Split:
    """Each user's last ``k`` events are for testing, the ``k`` before them for validation (where asked).

    A user with too few events to leave one for training keeps all of them in training.
    """
    k = check_integer("k", k, 1)
    tests = np.full(interactions.n_users, k)
    return _from_counts(interactions, tests * validation, tests, "leave_k_out", {"k": k, "validation": validation})


def ratio(interactions: Interactions, test: float = 0.1, validation: float = 0.1) -> Split:
    """The last ``test`` share of each user's events is for testing, the ``validation`` share before it for validation.

    Shares are rounded down to whole events per user. A user who gets no test event, or no validation event where those
    are asked for, keeps all events in training.
    """
    for name, share in (("test", test), ("validation", validation)):
        if not 0.0 <= share < 1.0:
            raise ValueError(f"{name} is {share!r}, expected 0 <= {name} < 1")
    if not 0.0 < test + validation < 1.0:
        raise ValueError(f"test + validation is {test + validation}, expected between 0 and 1, both excluded")
    counts = [np.floor(interactions.lengths * share + 1e-9).astype(np.int64) for share in (validation, test)]
    short = ((counts[0] == 0) & (validation > 0)) | ((counts[1] == 0) & (test > 0))
    counts = [np.where(short, 0, count) for count in counts]
    return _from_counts(interactions, counts[0], counts[1], "ratio", {"test": test, "validation": validation})


def global_temporal(
    interactions: Interactions,
    *,
    timestamp: float | datetime | None = None,
    quantile: float | None = None,
    validation_timestamp: float | datetime | None = None,
    validation_quantile: float | None = None,
) -> Split:
    """Events from one moment on are for testing; those from an earlier moment on, for validation (where asked).

    Users are cut at the same moment, so nothing in training is later than anything held out. A user whose events all
    come before the moment keeps all of them in training. One whose events all come after has none in training, and is
    evaluated only in a part that some event of the user precedes.

    Args:
        interactions: with timestamps.
        timestamp: the first moment of the test part, in the timestamps' own unit or as a datetime.
        quantile: in its place, the share of all events that come before the test part, 0 < quantile < 1.
        validation_timestamp, validation_quantile: likewise for validation; None for none.

    Raises:
        DataError: if there are no timestamps, or nothing or everything is later than the moment.
    """
    times = interactions.timestamps
    if times is None:
        raise DataError("global_temporal needs timestamps and this data has none; use leave_one_out or ratio")
    test = _moment(times, timestamp, quantile, "")
    if test is None:
        raise ValueError("global_temporal needs timestamp=… or quantile=…")
    validation = _moment(times, validation_timestamp, validation_quantile, "validation_")
    if validation is not None and validation > test:
        raise ValueError(f"validation starts at {validation}, after the test part ({test})")
    stops = [_first_from(interactions, test if moment is None else moment) for moment in (validation, test)]
    if (stops[1] == interactions.offsets[1:]).all() or (stops[0] == interactions.offsets[:-1]).all():
        raise DataError(
            f"timestamps run from {times.min()} to {times.max()}: a test part from {test} on"
            + (f" and validation from {validation} on" if validation is not None else "")
            + " leaves no test or no training events"
        )
    parameters = {"timestamp": test, "validation_timestamp": validation}
    parameters |= {"quantile": quantile, "validation_quantile": validation_quantile}
    return Split(
        interactions, stops[0], stops[1], "global_temporal", {k: v for k, v in parameters.items() if v is not None}
    )


def split_by_parts(
    interactions: Interactions, parts: NDArray[np.int8], strategy: str, parameters: dict[str, Any], in_time: bool = True
) -> Split:
    """The split with the part of each event, int8 [n_events] of TRAINING, VALIDATION, TEST and GONE (in none).

    Where parts do not follow each other ``in_time``, each user's events are moved so that they do on the tape.

    Raises:
        DataError: if no user keeps two events.
    """
    users, kept = interactions.event_users, np.flatnonzero(parts != GONE)
    if not in_time:
        kept = kept[np.lexsort((parts[kept], users[kept]))]
    sizes = np.bincount(users[kept] * 3 + parts[kept], minlength=3 * interactions.n_users).reshape(-1, 3)
    if len(kept) < interactions.n_events or not in_time:
        interactions, sizes = take(interactions, kept, f"the split {parameters}"), sizes[sizes.any(axis=1)]
    stops = interactions.offsets[:-1, None] + sizes.cumsum(axis=1)
    train_stop, validation_stop = np.ascontiguousarray(stops[:, :2].T)
    return Split(interactions, train_stop, validation_stop, strategy, parameters, in_time)


def _from_counts(
    interactions: Interactions, validation: Int64Array, test: Int64Array, strategy: str, parameters: dict[str, Any]
) -> Split:
    """Holds out so many of each user's last events; all stay in training where none would be left for it."""
    end, held = interactions.offsets[1:], validation + test
    enough = interactions.lengths > held
    validation_stop = np.where(enough, end - test, end)
    return Split(interactions, np.where(enough, end - held, end), validation_stop, strategy, parameters)


def _moment(
    times: NDArray[Any], timestamp: float | datetime | None, quantile: float | None, prefix: str
) -> float | int | None:
    """The boundary, from exactly one of its two forms; None where neither is given."""
    if timestamp is not None and quantile is not None:
        raise ValueError(f"{prefix}timestamp and {prefix}quantile are both given: choose one")
    if quantile is not None:
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"{prefix}quantile is {quantile!r}, expected between 0 and 1, both excluded")
        index = min(round(quantile * len(times)), len(times) - 1)
        return np.partition(times, index)[index].item()
    if isinstance(timestamp, datetime):
        return microseconds(timestamp)
    return timestamp


def _first_from(interactions: Interactions, moment: float) -> Int64Array:
    """Tape index of each user's first event at or after ``moment``, int64 [n_users]."""
    times = interactions.timestamps
    assert times is not None
    before = np.concatenate([[0], np.cumsum(times < moment)])
    start, end = interactions.offsets[:-1], interactions.offsets[1:]
    return start + before[end] - before[start]
