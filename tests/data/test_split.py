"""Splits: where the boundaries lie, what each part sees."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseq import _C
from fastseq.data import split as split_module
from fastseq.data.interactions import Interactions, build_interactions, filter_interactions
from fastseq.data.negatives import NegativeSampler
from fastseq.data.split import Split, global_temporal, leave_k_out, leave_one_out, ratio
from fastseq.data.strategies import warprec_split
from fastseq.errors import DataError

LENGTHS = [1, 2, 3, 4, 10, 25]


def of_lengths(lengths: list[int]) -> Interactions:
    users = [u for u, n in enumerate(lengths) for _ in range(n)]
    return build_interactions(users, list(range(len(users))), list(range(len(users))))


def sizes(split: Split) -> list[tuple[int, int, int]]:
    """(training, validation, test) events of each user."""
    edges = [split.interactions.offsets[:-1], split.train_stop, split.validation_stop, split.interactions.offsets[1:]]
    return [tuple(row) for row in np.diff(np.stack(edges), axis=0).T.tolist()]


@pytest.mark.parametrize(
    ("make", "want"),
    [
        (lambda d: leave_one_out(d), [(1, 0, 0), (2, 0, 0), (1, 1, 1), (2, 1, 1), (8, 1, 1), (23, 1, 1)]),
        (
            lambda d: leave_one_out(d, validation=False),
            [(1, 0, 0), (1, 0, 1), (2, 0, 1), (3, 0, 1), (9, 0, 1), (24, 0, 1)],
        ),
        (lambda d: leave_k_out(d, 2), [(1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0), (6, 2, 2), (21, 2, 2)]),
        (lambda d: ratio(d, 0.1, 0.2), [(1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0), (7, 2, 1), (18, 5, 2)]),
        (lambda d: ratio(d, 0.3, 0.0), [(1, 0, 0), (2, 0, 0), (3, 0, 0), (3, 0, 1), (7, 0, 3), (18, 0, 7)]),
    ],
)
def test_boundaries(make: Any, want: list[tuple[int, int, int]]) -> None:
    split = make(of_lengths(LENGTHS))
    assert sizes(split) == want
    test = split.part("test")
    assert test.users.tolist() == [u for u, w in enumerate(want) if w[2]]
    assert (test.target_stop - test.target_start).tolist() == [w[2] for w in want if w[2]]
    assert (test.history_stop - test.history_start).tolist() == [w[0] + w[1] for w in want if w[2]]
    assert (test.target_start == test.history_stop).all()
    validation = split.part("validation")
    assert (validation.history_stop - validation.history_start).tolist() == [w[0] for w in want if w[1]]
    assert validation.n_targets == sum(w[1] for w in want)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), min_size=8, max_size=60),
    st.integers(-1, 31),
    st.none() | st.integers(-1, 31),
)
def test_temporal(rows: list[tuple[int, int]], moment: int, earlier: int | None) -> None:
    users, times = zip(*rows, strict=True)
    data = build_interactions(users, [u % 2 for u in users], times)
    assert data.timestamps is not None
    first = moment if earlier is None else earlier
    if first > moment:
        with pytest.raises(ValueError, match="after the test part"):
            global_temporal(data, timestamp=moment, validation_timestamp=earlier)
        return
    if min(times) >= first or max(times) < moment:
        with pytest.raises(DataError, match="leaves no test or no training events"):
            global_temporal(data, timestamp=moment, validation_timestamp=earlier)
        return
    split = global_temporal(data, timestamp=moment, validation_timestamp=earlier)
    own = [data.timestamps[a:b] for a, b in zip(data.offsets, data.offsets[1:], strict=False)]
    assert sizes(split) == [
        (int((t < first).sum()), int(((t >= first) & (t < moment)).sum()), int((t >= moment).sum())) for t in own
    ]
    assert split.part("test").users.tolist() == [
        u for u, t in enumerate(own) if (t >= moment).any() and (t < moment).any()
    ]


def test_temporal_quantiles_and_datetimes() -> None:
    data = build_interactions([0] * 10 + [1] * 10, list(range(20)), list(range(20)))
    split = global_temporal(data, quantile=0.8, validation_quantile=0.4)
    assert sizes(split) == [(8, 2, 0), (0, 6, 4)]
    assert split.part("validation").users.tolist() == [0]  # user 1 has no event before its validation targets
    assert split.part("test").users.tolist() == [1]
    days = build_interactions([0, 0, 0], [1, 2, 3], ["2020-01-01", "2020-01-02", "2020-01-03"])
    for moment in (datetime(2020, 1, 3), datetime(2020, 1, 3, tzinfo=UTC)):
        assert sizes(global_temporal(days, timestamp=moment)) == [(2, 0, 1)]


@pytest.mark.parametrize(
    ("times", "moment", "train"),
    [
        ([100.1, 100.2, 100.6, 100.9], 100.5, 2),
        ([0.1, 0.2, 0.6, 0.9], "0.5", 2),
        (["1971-01-01", "1971-01-02", "1971-01-03", "1971-01-04"], "1971-01-03", 2),  # microseconds of a small size
        ([50, 60, 70, 80], np.int64(70), 2),
        ([1_577_836_800_000, 1_577_923_200_000, 1_578_009_600_000, 1_578_096_000_000], "2020-01-04T00:00Z", 3),
        ([1_577_836_800_000, 1_577_923_200_000, 1_578_009_600_000, 1_578_096_000_000], 1_577_923_200, 1),
    ],
)
def test_a_moment_is_in_the_unit_of_the_times(times: list[Any], moment: Any, train: int) -> None:
    data = build_interactions([0] * 4 + [1] * 4, [1, 2, 3, 4] * 2, times * 2)
    split = warprec_split(data, {"strategy": "timestamp_slicing", "timestamp": moment}, cold="keep")
    assert sizes(split) == [(train, 0, 4 - train)] * 2


def test_a_split_of_the_same_tape_has_a_hash_of_its_own() -> None:
    data = of_lengths(LENGTHS)
    splits = [leave_one_out(data), leave_one_out(data, validation=False), leave_k_out(data, 1)]
    one, none, k = (split.describe() for split in splits)
    assert one["data_hash"] == none["data_hash"] and one["split_hash"] == k["split_hash"] != none["split_hash"]


def test_seen_holds_training_items_only() -> None:
    data = build_interactions([0] * 6 + [1] * 2, [3, 1, 3, 5, 7, 9, 5, 1])
    split = leave_one_out(data)
    offsets, items = split.seen()
    assert offsets.tolist() == [0, 3, 5]
    assert data.item_ids.decode(items) == [1, 3, 5, 1, 5]
    assert offsets.dtype == items.dtype == np.int64
    assert split.item_counts().tolist() == [2, 2, 2, 0, 0]
    assert split.n_train == 6


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=9, max_size=60), st.floats(0.1, 0.9))
def test_seen_of_any_tape(rows: list[tuple[int, int]], quantile: float) -> None:
    """Repeats, one user's last item being the next one's first, and users without training events."""
    data = build_interactions(*zip(*rows, strict=True), list(range(len(rows))))
    split = global_temporal(data, quantile=quantile)
    offsets, items = split.seen()
    for user, (start, stop) in enumerate(zip(data.offsets, split.train_stop, strict=False)):
        assert items[offsets[user] : offsets[user + 1]].tolist() == sorted(set(data.items[start:stop].tolist()))


def test_seen_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the tape's sort, and none of NumPy's: on 5 M events np.unique took 25 times as long."""
    split, calls = leave_one_out(of_lengths(LENGTHS)), []
    build_tape = _C.build_tape
    monkeypatch.setattr(split_module._C, "build_tape", lambda *arguments: calls.append(1) or build_tape(*arguments))
    for name in ("unique", "sort", "lexsort", "argsort"):
        monkeypatch.setattr(np, name, None)
    for _ in range(2):
        NegativeSampler(split, 1).check_drawable()
    assert len(calls) == 1


def test_warm_leaves_out_what_was_never_trained() -> None:
    """User 0's validation event and user 1's test target are of items without a training event."""
    data = build_interactions([0] * 4 + [1] * 4 + [2], [1, 2, 8, 1, 2, 1, 2, 9, 2])
    split = leave_one_out(data)
    counts = ("items_without_training", "validation_targets_without_training", "test_targets_without_training")
    assert [split.describe()[name] for name in counts] == [2, 1, 1]
    warm = split.warm()
    assert warm.interactions.item_ids.values.tolist() == [1, 2] and warm.interactions.n_users == 3
    assert sizes(warm) == [(2, 0, 1), (2, 1, 0), (1, 0, 0)]
    assert [warm.describe()[name] for name in counts] == [0, 0, 0]
    assert warm.describe()["dropped"] == {"validation": 1, "test": 1} and warm.warm() is warm
    assert warm.part("test").users.tolist() == [0]


def test_warprecs_strategies() -> None:
    """Counted by hand; tests/warprec compares with WarpRec's own."""
    data = of_lengths(LENGTHS)
    holdout = {"strategy": "temporal_holdout", "ratio": 0.3}
    assert sizes(warprec_split(data, holdout, {**holdout, "ratio": 0.5}, "keep")) == [
        (1, 0, 0), (1, 0, 1), (1, 1, 1), (1, 1, 2), (3, 4, 3), (8, 9, 8),
    ]  # fmt: skip
    last = {"strategy": "temporal_leave_k_out", "k": 2}
    short = warprec_split(data, last, cold="keep")
    assert sizes(short) == [(1, 0, 2), (2, 0, 2), (8, 0, 2), (23, 0, 2)] and short.dropped == {"short_users": 2}
    with pytest.raises(DataError, match="keep_order=True"):
        warprec_split(data, {"strategy": "random_holdout", "ratio": 0.5})
    drawn = warprec_split(
        replace(data, order=np.arange(data.n_events)), {"strategy": "random_leave_k_out", "k": 1}, cold="keep"
    )
    test = drawn.part("test")
    assert (test.history_stop == drawn.train_stop[test.users]).all() and not drawn.in_time
    assert drawn.interactions.timestamps is not None
    for start, stop in zip(drawn.interactions.offsets, drawn.train_stop, strict=False):
        assert (np.diff(drawn.interactions.timestamps[start:stop]) > 0).all()


def test_describe_is_json() -> None:
    data = of_lengths(LENGTHS)
    described = json.loads(json.dumps(leave_k_out(data, 2).describe()))
    assert described["strategy"] == "leave_k_out" and described["parameters"] == {"k": 2, "validation": True}
    assert described["data_hash"] == data.data_hash
    assert (described["train_events"], described["validation_targets"], described["test_targets"]) == (37, 4, 4)
    assert described["filters"] == []
    core = filter_interactions(filter_interactions(data, min_user=3), min_user=2, min_item=1, duplicates="last")
    assert json.loads(json.dumps(leave_k_out(core, 2).describe()))["filters"] == [
        {"min_user": 3, "min_item": 1, "duplicates": "keep"},
        {"min_user": 2, "min_item": 1, "duplicates": "last"},
    ]
    assert json.loads(json.dumps(global_temporal(data, quantile=0.5).describe()))["parameters"]["quantile"] == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: leave_k_out(d, 0), "k is 0"),
        (lambda d: ratio(d, 1.0, 0.0), "test is 1.0"),
        (lambda d: ratio(d, 0.5, 0.5), "test [+] validation is 1.0"),
        (lambda d: ratio(d, 0.0, 0.0), "test [+] validation is 0.0"),
        (lambda d: global_temporal(d), "needs timestamp"),
        (lambda d: global_temporal(d, timestamp=1, quantile=0.5), "choose one"),
        (lambda d: global_temporal(d, quantile=1.0), "quantile is 1.0"),
        (lambda d: leave_one_out(d).part("train"), "part is 'train'"),
        (lambda d: leave_one_out(d).part("test", "none"), "history is 'none'"),
        (lambda d: warprec_split(d, {"strategy": "folds"}), "test: strategy is 'folds', expected one of temporal_hold"),
        (lambda d: warprec_split(d, {"strategy": "temporal_holdout", "k": 1}), "takes 'ratio', not 'k'"),
        (lambda d: warprec_split(d, {"strategy": "temporal_holdout"}), "test: ratio is None"),
        (lambda d: warprec_split(d, {"strategy": "random_leave_k_out", "k": 0}), "test: k is 0"),
        (lambda d: warprec_split(d, {"strategy": "timestamp_slicing", "timestamp": "x"}), "timestamp is 'x'"),
        (lambda d: warprec_split(d, {"strategy": "timestamp_slicing", "timestamp": math.nan}), "timestamp is nan"),
        (lambda d: Split(d, d.offsets[1:], d.offsets[:-1]), "user 0: expected start <= train_stop"),
        (lambda d: Split(d, d.offsets, d.offsets), "train_stop is int64"),
    ],
)
def test_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(of_lengths(LENGTHS))


def test_temporal_needs_timestamps() -> None:
    with pytest.raises(DataError, match="needs timestamps"):
        global_temporal(build_interactions([0, 0], [1, 2]), quantile=0.5)
