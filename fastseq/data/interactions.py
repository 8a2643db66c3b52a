"""``Interactions``: every event of every user on one flat tape."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fastseq.errors import DataError, check_integer
from fastseq.native import _C

from .ids import IdMap, Int64Array, RawId, factorise
from .times import as_times


@dataclass(frozen=True, eq=False)
class Interactions:
    """Events sorted by user, then time, then the order in which they were given. Not to be changed in place.

    Attributes:
        items: int64 [n_events], the tape: item indices of user 0, then of user 1, …
        offsets: int64 [n_users + 1]: user u's events are ``items[offsets[u]:offsets[u + 1]]``, oldest first.
        user_ids: raw user ids; every user has at least one event, and at least one user has two (of ``read_histories``:
            one).
        item_ids: raw item ids; every item occurs on the tape.
        timestamps: int64 or float64 [n_events] beside ``items``, or None where the given order is the order in time.
            Datetimes are microseconds since 1970-01-01 UTC; numbers are as given.
        filters: name and arguments of each filter that made this, in order; every score names them.
        order: int64 [n_events], the place of each event in the source, or None where it was not kept.
        ratings: float64 [n_events], or None where they were not read.
    """

    items: Int64Array
    offsets: Int64Array
    user_ids: IdMap
    item_ids: IdMap
    timestamps: NDArray[Any] | None = None
    filters: tuple[dict[str, Any], ...] = ()
    order: Int64Array | None = None
    ratings: NDArray[np.float64] | None = None

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def n_events(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> Int64Array:
        """Events of each user, int64 [n_users]."""
        return np.diff(self.offsets)

    @property
    def event_users(self) -> Int64Array:
        """The user of each event, int64 [n_events]; built anew at every call."""
        return np.repeat(np.arange(self.n_users), self.lengths)

    @cached_property
    def data_hash(self) -> str:
        """sha256 (hex) of tape, offsets and ids: equal for equal data, whatever file or format it came from."""
        state = hashlib.sha256()
        for array in (self.items, self.offsets):
            state.update(np.ascontiguousarray(array, dtype="<i8").data)
        state.update((self.user_ids.digest() + self.item_ids.digest()).encode())
        return state.hexdigest()

    @cached_property
    def tied_share(self) -> float | None:
        """Share of events that have the same time as the one before or after of their user, whose order among each
        other is therefore that of the source; None without timestamps."""
        if self.timestamps is None:
            return None
        same = self.timestamps[1:] == self.timestamps[:-1]
        same[self.offsets[1:-1] - 1] = False  # the last of one user and the first of the next
        tied = np.zeros(self.n_events, np.bool_)
        tied[1:] = same
        tied[:-1] |= same
        return float(tied.mean())

    def history(self, user: RawId) -> list[int] | list[str]:
        """Raw item ids of one raw user id, oldest first."""
        (index,) = self.user_ids.encode([user])
        return self.item_ids.decode(self.items[self.offsets[index] : self.offsets[index + 1]])

    def __repr__(self) -> str:
        return f"Interactions({self.n_users:,} users, {self.n_items:,} items, {self.n_events:,} events)"


def build_interactions(
    users: Sequence[RawId] | NDArray[Any],
    items: Sequence[RawId] | NDArray[Any],
    timestamps: Sequence[Any] | NDArray[Any] | None = None,
) -> Interactions:
    """Columns to a tape, sorted by user, then time. Equal times keep the order given, and so do all without times.

    Args:
        users: raw ids [n_events], all strings or all integers.
        items: raw ids [n_events], likewise.
        timestamps: [n_events] integers, floats or datetimes, or None.

    Raises:
        DataError: if the columns' lengths differ, an id or timestamp is missing or of the wrong type (naming row and
            column), there are no events, or no user has two.
    """
    times = None if timestamps is None else as_times(timestamps)
    sizes = {"users": len(users), "items": len(items)} | ({} if times is None else {"timestamps": len(times)})
    if len(set(sizes.values())) > 1:
        raise DataError("columns differ in length: " + ", ".join(f"{k} has {v}" for k, v in sizes.items()))
    if not len(users):
        raise DataError("no events: the data is empty")
    user_ids, user_codes = factorise(users, "user")
    item_ids, item_codes = factorise(items, "item")
    return tape_from_codes(user_ids, user_codes, item_ids, item_codes, times)


def tape_from_codes(
    user_ids: IdMap,
    user_codes: NDArray[np.int32],
    item_ids: IdMap,
    item_codes: NDArray[np.int32],
    times: NDArray[Any] | None,
    ratings: NDArray[Any] | None = None,
    keep_order: bool = False,
    least: int = 2,
) -> Interactions:
    """As ``build_interactions``, from indices into the id maps, int32 [n_events], and int64 or float64 times.

    ``keep_order`` keeps the place of each event in the columns; ``ratings`` are [n_events]; some user has ``least``
    events or more.
    """
    n = len(user_codes)
    offsets, tape = np.empty(len(user_ids) + 1, np.int64), np.empty(n, np.int64)
    tape_times = None if times is None else np.empty_like(times)
    beside: dict[str, Any] = {}
    if keep_order or ratings is not None:
        order = np.empty(n, np.int64)
        rows = np.arange(n, dtype=np.int32)
        _C.build_tape(user_codes, rows, times, offsets, order, tape_times, torch.get_num_threads())
        tape = item_codes[order].astype(np.int64)
        beside["order"] = order if keep_order else None
        beside["ratings"] = None if ratings is None else ratings[order].astype(np.float64)
    else:
        _C.build_tape(user_codes, item_codes, times, offsets, tape, tape_times, torch.get_num_threads())
    if n and np.diff(offsets).max() < least:
        raise DataError(
            f"no user has 2 or more events ({len(user_ids)} users, {n} events): there is nothing to predict; "
            "check which column holds the users"
        )
    return Interactions(tape, offsets, user_ids, item_ids, tape_times, **beside)


def filter_interactions(
    interactions: Interactions,
    *,
    min_user: int = 1,
    min_item: int = 1,
    duplicates: Literal["keep", "first", "last"] = "keep",
) -> Interactions:
    """The events left when short users and rare items are dropped; ids are indexed anew.

    Args:
        interactions: what to filter; unchanged.
        min_user: least events of a user (the minimum sequence length).
        min_item: least events of an item. Dropping an item shortens users and the other way round, so both are
            repeated until nothing changes: the k-core.
        duplicates: what happens first to repeats of an item in one user's history: keep all, or only the first or
            the last.

    Raises:
        DataError: if no event is left or no user keeps two.
        ValueError: if an argument is out of range.
    """
    if duplicates not in ("keep", "first", "last"):
        raise ValueError(f"duplicates is {duplicates!r}, expected 'keep', 'first' or 'last'")
    for name, value in (("min_user", min_user), ("min_item", min_item)):
        check_integer(name, value, 0)
    users, items = interactions.event_users, interactions.items
    kept = np.arange(interactions.n_events)
    if duplicates != "keep":
        pairs = users * interactions.n_items + items
        if duplicates == "first":
            kept = np.sort(np.unique(pairs, return_index=True)[1])
        else:
            kept = np.sort(len(pairs) - 1 - np.unique(pairs[::-1], return_index=True)[1])
    while True:
        stays = np.bincount(users[kept], minlength=interactions.n_users)[users[kept]] >= min_user
        stays &= np.bincount(items[kept], minlength=interactions.n_items)[items[kept]] >= min_item
        if stays.all():
            break
        kept = kept[stays]
    limits = f"min_user={min_user}, min_item={min_item}, duplicates={duplicates!r}"
    if not len(kept):
        raise DataError(f"no event is left of {interactions.n_events} after filtering with {limits}; lower the limits")
    filters = (*interactions.filters, {"min_user": min_user, "min_item": min_item, "duplicates": duplicates})
    whole = len(kept) == interactions.n_events
    return replace(interactions if whole else take(interactions, kept, f"filtering with {limits}"), filters=filters)


def take(interactions: Interactions, kept: Int64Array, what: str) -> Interactions:
    """The events at tape rows ``kept`` [k], user after user; users and items without an event are dropped.

    Raises:
        DataError: if no user keeps two events after ``what``.
    """
    lengths = np.bincount(interactions.event_users[kept], minlength=interactions.n_users)
    counts = np.bincount(interactions.items[kept], minlength=interactions.n_items)
    if lengths.max() < 2:
        raise DataError(f"no user keeps 2 or more events after {what}; keep more of them")
    users, items = np.flatnonzero(lengths), np.flatnonzero(counts)
    rank = np.cumsum(counts > 0) - 1
    beside: dict[str, Any] = {}
    for name in ("timestamps", "order", "ratings"):
        array = getattr(interactions, name)
        beside[name] = None if array is None else array[kept]
    return replace(
        interactions,
        items=rank[interactions.items[kept]],
        offsets=np.concatenate([[0], np.cumsum(lengths[users])]),
        user_ids=interactions.user_ids.take(users),
        item_ids=interactions.item_ids.take(items),
        **beside,
    )
