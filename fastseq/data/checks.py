"""A look at the data before training: what in them will change the result, and what to do about it.

Whatever is counted is counted for some users at a time, so beside the data memory is that of a block of events, and a
few numbers a user.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseq.errors import check_integer

from .findings import DataReport, Finding, Severity, by_severity
from .id_checks import check_ids
from .ids import Int64Array
from .interactions import Interactions
from .split import Split
from .times import UNIT_BOUNDS, UNITS, units_in

BLOCK = 1 << 20  # events that are looked at together; a longer history alone is one block
QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "50%": 0.5, "75%": 0.75, "95%": 0.95, "99%": 0.99, "max": 1.0}
SOME, MANY = 0.01, 0.1  # shares from which a finding is a warning
NEARLY = 0.9  # of the catalogue


def check_interactions(
    interactions: Interactions,
    max_seq_len: int | None = 200,
    split: Split | None = None,
    *,
    window_stride: int | None = None,
    whole_context: bool = False,
    per_user_negatives: bool = True,
) -> DataReport:
    """Figures of the data, and what in them will change the result. Data without any finding have an empty list.

    Args:
        interactions: all of them, as they were read and filtered.
        max_seq_len: the model's L; None: histories are not compared with it.
        split: of the interactions. Findings then say what happens to its parts. Events that ``Split.warm`` left out
            are known by their number alone, so pass the split as it was before.
        window_stride: the model's, 1 … L; None: L.
        whole_context: whether every target has its L events at any stride, as with Caser.
        per_user_negatives: whether training draws negatives that the user has not seen, which is an error for a user
            who has seen everything.

    Raises:
        ConfigError: if ``max_seq_len`` or ``window_stride`` is out of range.
    """
    data, lengths = interactions, interactions.lengths
    again = _Repeats.of(data)
    findings: list[Finding | None] = [
        *check_ids(data.user_ids, "user"),
        *check_ids(data.item_ids, "item"),
        _mixed_units(data),
        again.duplicates_found(data),
        again.found(data),
        _ties(data, split),
        _single_events(data),
        *_seen_everything(data, split, per_user_negatives),
    ]
    if split is not None:
        findings += [_cold_targets(split), _cold_users(split), _untrained_users(split)]
    beyond = None
    if max_seq_len is not None:
        long = check_lengths(data, max_seq_len, split, window_stride=window_stride, whole_context=whole_context)
        beyond = long.share if long else 0.0
        findings.append(long)
    quantiles = np.quantile(lengths, list(QUANTILES.values()))
    named = {name: float(value) for name, value in zip(QUANTILES, quantiles, strict=True)}
    return DataReport(
        users=data.n_users,
        items=data.n_items,
        events=data.n_events,
        density=again.pairs / (data.n_users * data.n_items),
        lengths={"mean": data.n_events / data.n_users, **named},
        histogram=_histogram(lengths),
        tied_share=data.tied_share,
        max_seq_len=max_seq_len,
        beyond=beyond,
        split=None if split is None else _sizes(split),
        findings=by_severity([finding for finding in findings if finding is not None]),
    )


def check_lengths(
    data: Interactions,
    max_seq_len: int,
    split: Split | None = None,
    *,
    window_stride: int | None = None,
    whole_context: bool = False,
) -> Finding | None:
    """The training targets with more events before them than a model reads; see ``check_interactions``."""
    limit = check_integer("max_seq_len", max_seq_len, 1)
    stride = limit if window_stride is None else check_integer("window_stride", window_stride, 1)
    stride = 1 if whole_context else stride
    lengths = data.lengths if split is None else split.train_stop - split.interactions.offsets[:-1]
    before = lengths - 1  # the last target's
    total = int(before.clip(0).sum())

    def beyond(length: int) -> int:
        return int((before - length).clip(0).sum())

    if not (count := beyond(limit)):
        return None
    low, high = limit, int(before.max())  # the least length that leaves 5% beyond it
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if beyond(middle) <= total / 20 else (middle + 1, high)
    if low == limit:
        low = int(before.max())
    left = f"{beyond(low) / total:.0%}" if beyond(low) else "none"
    consequence, remedy = f"of those the model reads the last {limit:,} alone", ""
    if stride > 1:
        shorter = max(1, limit // 4)
        consequence = (
            f"the model reads the last {limit:,} of those at most, and for targets early in a window only "
            f"{max(1, limit - stride + 1):,} or a few more (window_stride: {stride:,})"
        )
        if shorter < stride:
            remedy = (
                f"; window_stride: {shorter:,} gives each at least {limit - shorter + 1:,}, and an epoch takes longer"
            )
    users = (data if split is None else split.interactions).user_ids
    return Finding(
        "long_histories",
        "note" if whole_context else _severity(count, total, MANY),
        count,
        count / total,
        tuple({"user": user} for user in users.decode([int(before.argmax())])),
        f"{_of(count, total)} training targets have more than max_seq_len = {limit:,} events before them",
        consequence,
        f"max_seq_len: {low:,} leaves {left} beyond it (time and memory of a step grow){remedy}",
    )


@dataclass(frozen=True)
class _Repeats:
    """Events of an item that their user had before: at the same time (duplicates), or at another (repeats)."""

    pairs: int  # distinct (user, item)
    duplicates: int
    repeats: int
    directly: int  # repeats of the event just before
    duplicate_rows: tuple[int, ...]  # on the tape
    repeat_rows: tuple[int, ...]

    @classmethod
    def of(cls, data: Interactions) -> _Repeats:
        pairs = duplicates = directly = 0
        examples: list[list[int]] = [[], []]
        for first, last in _blocks(data.lengths):
            begin, end = int(data.offsets[first]), int(data.offsets[last])
            users = np.repeat(np.arange(last - first), np.diff(data.offsets[first : last + 1]))
            items = data.items[begin:end]
            ordered = np.sort(users * data.n_items + items)
            pairs += 1 + int((ordered[1:] != ordered[:-1]).sum())
            after = np.zeros(len(items), np.bool_)  # whether an event has the time of the one before it
            if data.timestamps is not None:
                times = data.timestamps[begin:end]
                after[1:] = (times[1:] == times[:-1]) & (users[1:] == users[:-1])
                tied = after.copy()
                tied[:-1] |= after[1:]
                rows = np.flatnonzero(tied)
                keys = np.cumsum(~after)[rows] * data.n_items + items[rows]
                order = np.argsort(keys, kind="stable")
                same = keys[order[1:]] == keys[order[:-1]]
                duplicates += int(same.sum())
                examples[0] += (begin + rows[order[1:][same][:3]]).tolist()
            next_to = (items[1:] == items[:-1]) & (users[1:] == users[:-1]) & ~after[1:]
            directly += int(next_to.sum())
            if len(ordered) and len(examples[1]) < 3:
                again = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
                twice = [divmod(key, data.n_items) for key in again[:3].tolist()]
                found = [np.flatnonzero((users == user) & (items == item)) for user, item in twice]
                examples[1] += [begin + int(at[-1]) for at in found if not after[at[0] + 1 : at[-1] + 1].all()]
        repeats = data.n_events - pairs - duplicates
        return cls(pairs, duplicates, repeats, directly, *(tuple(rows[:3]) for rows in examples))

    def duplicates_found(self, data: Interactions) -> Finding | None:
        if not self.duplicates:
            return None
        return Finding(
            "duplicates",
            _severity(self.duplicates, data.n_events, SOME),
            self.duplicates,
            self.duplicates / data.n_events,
            _events(data, self.duplicate_rows),
            f"{_of(self.duplicates, data.n_events)} events are in the data before: same user, item and time",
            "a history has the item twice, and the model is trained, and tested, to say what it has just read",
            "drop such rows where the file is written (polars: unique()); filtering: Duplicates: {keep: first} leaves "
            "one event of each user and item",
        )

    def found(self, data: Interactions) -> Finding | None:
        if not self.repeats:
            return None
        return Finding(
            "repeats",
            _severity(self.repeats, data.n_events, SOME),
            self.repeats,
            self.repeats / data.n_events,
            _events(data, self.repeat_rows),
            f"{_of(self.repeats, data.n_events)} events are of an item that their user had before, {self.directly:,} "
            "of them right after it",
            "a target that the user had in training is left out of the ranking and counts as missed, with "
            "evaluation.mask_seen: pair (the default) or history",
            "evaluation.mask_seen: none, where people do take the same again; filtering: Duplicates: {keep: first} "
            "leaves one event of each user and item",
        )


def _mixed_units(data: Interactions) -> Finding | None:
    times = data.timestamps
    counts = {} if times is None else units_in(times)
    if times is None or not counts:
        return None
    unit = min(counts, key=counts.__getitem__)
    low, high = UNIT_BOUNDS[2 * UNITS.index(unit) :][:2]
    row = next(  # of the rarer unit
        start + int(np.argmax(found))
        for start in range(0, len(times), BLOCK)
        if (found := (times[start : start + BLOCK] > low) & (times[start : start + BLOCK] <= high)).any()
    )
    seen = ", ".join(f"{number:,} in {name}" for name, number in counts.items())
    return Finding(
        "mixed_units",
        "warning",
        counts[unit],
        counts[unit] / len(times),
        _events(data, (row,)),
        f"times look like different units since 1970: {seen}",
        "events are in the wrong order, so histories, targets and splits are others than they seem",
        "convert the column to one unit where the file is written",
    )


def _ties(data: Interactions, split: Split | None) -> Finding | None:
    if not data.tied_share:
        return None
    count, cut, words = round(data.tied_share * data.n_events), 0.0, ""
    for part in ("validation", "test"):
        number = split.ties[f"{part}_users_cut_in_ties"] if split is not None else None
        if split is not None and number:
            cut = max(cut, number / len(split.part(part)))
            words += f", {number:,} users' first {part} target among them"
    times = data.timestamps
    assert times is not None
    row = _first_tie(data)
    return Finding(
        "ties",
        "warning" if max(cut, data.tied_share) >= MANY else "note",
        count,
        data.tied_share,
        _events(data, (row, row + 1)),
        f"{_of(count, data.n_events)} events have the time of the one before or after of their user{words}",
        "the order of the file decides which of them comes first, and which is held out",
        "read a finer time (reader.labels.timestamp_label), or see to it that the file has such events in the order in "
        "which they happened",
    )


def _first_tie(data: Interactions) -> int:
    """The tape row of the first event that has the time of the next one, of the same user."""
    times = data.timestamps
    assert times is not None
    for first, last in _blocks(data.lengths):
        begin, end = int(data.offsets[first]), int(data.offsets[last])
        same = times[begin : end - 1] == times[begin + 1 : end]
        same[data.offsets[first + 1 : last] - begin - 1] = False
        if same.any():
            return begin + int(np.argmax(same))
    raise AssertionError("no tie in data with ties")


def _single_events(data: Interactions) -> Finding | None:
    users = np.flatnonzero(data.lengths == 1)
    return _users_found(
        "single_event_users",
        data,
        users,
        data.n_users,
        MANY,
        "users have one event",
        "nothing can be predicted of them: they add to the popularity of an item alone, and are in no test",
        "filtering: UserMin: {min_interactions: 3}; IterativeKCore sees to rare items too",
    )


def _untrained_users(split: Split) -> Finding | None:
    data = split.interactions
    trained = split.train_stop - data.offsets[:-1]
    users = np.flatnonzero((trained == 1) & (data.lengths > 1))
    held = np.flatnonzero(trained < data.lengths)
    found = _users_found(
        "users_without_targets",
        data,
        users,
        len(held),
        MANY,
        "users with held-out events have one training event",
        "they are scored, and no training target is theirs",
        "filtering: UserMin, or hold out less (splitter)",
    )
    if found is None or (trained >= 2).any():
        return found
    return replace(found, severity="error", consequence="training refuses the data: no user has 2 training events")


def _seen_everything(data: Interactions, split: Split | None, per_user: bool) -> list[Finding | None]:
    """Users who have seen all, or nearly all, of the items that have a training event."""
    whole = data if split is None else split.interactions
    start, stop = whole.offsets[:-1], whole.offsets[1:] if split is None else split.train_stop
    catalogue = whole.n_items if split is None else int(split.trained_items.sum())
    users = np.flatnonzero(stop - start >= max(2, NEARLY * catalogue))  # only they can have
    distinct = np.zeros(len(users), np.int64)
    for first, last in _blocks(stop[users] - start[users]):
        some = users[first:last]
        sizes = stop[some] - start[some]
        rows = np.repeat(np.arange(last - first), sizes)
        pairs = np.unique(rows * whole.n_items + whole.items[_within(start[some], stop[some])])
        distinct[first:last] = np.bincount(pairs // whole.n_items, minlength=last - first)
    every, nearly = users[distinct >= catalogue], users[(distinct >= NEARLY * catalogue) & (distinct < catalogue)]
    left = catalogue - int(distinct[distinct < catalogue].max(initial=0))
    consequence = "nothing is left to recommend to them"
    if per_user:
        consequence = "training refuses them: no item is left to draw as a negative"
    all_of_it = _users_found(
        "seen_everything",
        whole,
        every,
        whole.n_users,
        0.0,
        f"users have seen all {catalogue:,} items" + (" in training" if split is not None else ""),
        consequence,
        "look whether the column of items is the right one; filtering: DropUser or UserMax leaves such users out; "
        "negatives: shared, or neg_samples: 0",
    )
    if all_of_it is not None and split is not None and per_user:
        all_of_it = replace(all_of_it, severity="error")
    most = _users_found(
        "seen_nearly_everything",
        whole,
        nearly,
        whole.n_users,
        SOME,
        f"users have seen {NEARLY:.0%} or more of the {catalogue:,} items, and not all",
        f"their negatives and candidates are among the items left, of one user {left:,}: scores are high by themselves",
        "look whether the column of items is the right one; filtering: UserMax leaves such users out",
    )
    return [all_of_it, most]


def _cold_targets(split: Split) -> Finding | None:
    """Held-out events of items without a training event, in both parts; or those that were left out."""
    data, dropped = split.interactions, {name: split.dropped.get(name, 0) for name in ("validation", "test")}
    counts, totals, rows = dict(dropped), {}, []
    for name, (first, stop) in _held_out(split).items():
        totals[name] = int((stop - first).sum()) + dropped[name]
        if not any(dropped.values()):
            for low, high in _blocks(stop - first):
                some = _within(first[low:high], stop[low:high])
                cold = some[~split.trained_items[data.items[some]]]
                counts[name] += len(cold)
                rows += cold[:3].tolist()
    if not (count := sum(counts.values())):
        return None
    parts = [f"{_of(counts[name], totals[name])} {name} targets" for name in totals if counts[name]]
    why = "had an item or a user" if any(dropped.values()) else "are items"
    items = data.item_ids.decode(np.unique(data.items[rows])[:3]) if rows else []
    return Finding(
        "cold_targets",
        "warning" if any(counts[name] >= max(1, SOME * totals[name]) for name in totals) else "note",
        count,
        count / sum(totals.values()),
        tuple({"item": item} for item in items),
        f"{' and '.join(parts)} {why} without a training event",
        "these models cannot predict them: splitter.cold: drop (the default) leaves them out, with keep they count as "
        "misses",
        "hold out less (splitter), or leave rare items out: filtering: ItemMin or IterativeKCore",
    )


def _cold_users(split: Split) -> Finding | None:
    data = split.interactions
    users = np.flatnonzero((split.train_stop == data.offsets[:-1]) & (data.lengths > 0))
    events = int(data.lengths[users].sum())
    return _users_found(
        "cold_users",
        data,
        users,
        data.n_users,
        SOME,
        f"users have {events:,} held-out events and none in training",
        "splitter.cold: drop (the default) leaves them out; with keep those with no event before their targets are not "
        "ranked, and Caser knows nothing of the others",
        "hold out less, or split within users: splitter: temporal_leave_k_out or temporal_holdout",
    )


def _users_found(
    code: str, data: Interactions, users: Int64Array, total: int, limit: float, what: str, consequence: str, remedy: str
) -> Finding | None:
    """A finding about the users at these indices, out of so many."""
    if not len(users):
        return None
    severity = _severity(len(users), total, limit)
    examples = tuple({"user": user} for user in data.user_ids.decode(users[:3]))
    text = f"{_of(len(users), total)} {what}"
    return Finding(code, severity, len(users), len(users) / total, examples, text, consequence, remedy)


def _severity(count: int, total: int, limit: float) -> Severity:
    return "warning" if count >= limit * total else "note"


def _of(count: int, total: int) -> str:
    """A number and its share, such as "12 of 4,000 (0.3%)"."""
    share = count / total
    return f"{count:,} of {total:,} ({'< 0.1%' if share < 0.001 else f'{share:.1%}'})"


def _events(data: Interactions, rows: tuple[int, ...]) -> tuple[dict[str, Any], ...]:
    """Raw user, item and time of events on the tape."""
    result = []
    for row in rows:
        user = int(np.searchsorted(data.offsets, row, side="right")) - 1
        event: dict[str, Any] = {"user": data.user_ids.decode([user])[0]}
        event["item"] = data.item_ids.decode(data.items[row : row + 1])[0]
        if data.timestamps is not None:
            event["time"] = data.timestamps[row].item()
        result.append(event)
    return tuple(result)


def _held_out(split: Split) -> dict[str, tuple[Int64Array, Int64Array]]:
    """Where each user's targets of a part begin and end on the tape."""
    ends = split.interactions.offsets[1:]
    return {"validation": (split.train_stop, split.validation_stop), "test": (split.validation_stop, ends)}


def _within(first: Int64Array, stop: Int64Array) -> Int64Array:
    """The rows of stretches, one after the other."""
    sizes = stop - first
    return np.arange(int(sizes.sum())) + np.repeat(first - np.cumsum(sizes) + sizes, sizes)


def _blocks(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) of users in a row who have ``BLOCK`` of these together, or one user more."""
    before = np.concatenate([[0], np.cumsum(sizes)])
    cuts = np.searchsorted(before, np.arange(0, int(before[-1]), BLOCK))
    yield from pairwise(np.unique([*cuts, len(sizes)]).tolist())


def _histogram(lengths: Int64Array) -> tuple[tuple[int, int, int], ...]:
    """Users by length: 1, 2, 3 to 4, 5 to 8, …"""
    edges = 2 ** np.arange(int(lengths.max() - 1).bit_length() + 1)
    users = np.bincount(np.searchsorted(edges, lengths), minlength=len(edges)).tolist()
    lows = [1, *(edges[:-1] + 1).tolist()]
    return tuple(zip(lows, edges.tolist(), users, strict=True))


def _sizes(split: Split) -> dict[str, Any]:
    validation, test = split.part("validation"), split.part("test")
    return {
        "strategy": split.strategy,
        "train_events": split.n_train,
        "validation_users": len(validation),
        "validation_targets": validation.n_targets,
        "test_users": len(test),
        "test_targets": test.n_targets,
    }
