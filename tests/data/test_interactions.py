"""The tape: order, ties, hash, filters."""

from __future__ import annotations

import contextlib
from collections import Counter
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseq import _C
from fastseq.data.interactions import Interactions, build_interactions, filter_interactions
from fastseq.data.times import as_times
from fastseq.errors import DataError

events = st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 9), st.integers(-2, 2)), min_size=7, max_size=40)
DAY = 86_400_000_000


def histories(data: Interactions) -> dict[Any, list[Any]]:
    return {user: data.history(user) for user in data.user_ids.values}


@settings(deadline=None)
@given(events, st.sampled_from([None, int, float]))
def test_sorted_by_user_then_time_then_order(rows: list[tuple[int, int, int]], kind: type | None) -> None:
    users, items, times = zip(*rows, strict=True)
    data = build_interactions(users, items, None if kind is None else [kind(t) for t in times])
    ordered = sorted(rows, key=lambda row: (row[0], 0 if kind is None else row[2]))  # stable
    want: dict[int, list[int]] = {}
    for user, item, _ in ordered:
        want.setdefault(user, []).append(item)
    assert histories(data) == want
    assert data.n_events == len(rows) and data.offsets[-1] == len(rows)
    assert data.items.dtype == data.offsets.dtype == np.int64
    if kind is None:
        assert data.timestamps is None
    else:
        assert data.timestamps is not None and data.timestamps.dtype == np.dtype(kind)
        assert data.timestamps.tolist() == [row[2] for row in ordered]


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_threads_do_not_change_the_tape(dtype: type) -> None:
    rng = np.random.default_rng(0)
    n, n_users = 10_000, 37
    users = (n_users * rng.random(n) ** 4).astype(np.int32)
    items, times = rng.integers(100, size=n).astype(np.int32), rng.integers(50, size=n).astype(dtype)
    order = np.lexsort((np.arange(n), times, users))
    for threads in (1, 2, 3, 8, 64):
        offsets, tape, tape_times = np.full(n_users + 1, -1), np.full(n, -1), np.full(n, -1, dtype)
        _C.build_tape(users, items, times, offsets, tape, tape_times, threads)
        assert (tape == items[order]).all() and (tape_times == times[order]).all()
        assert (np.diff(offsets) == np.bincount(users, minlength=n_users)).all()


def test_the_door_checks() -> None:
    def build(users: list[int], times: Any = None, tape_times: Any = None, size: int = 2) -> None:
        tape, offsets = np.empty(size, np.int64), np.empty(3, np.int64)
        _C.build_tape(np.array(users, np.int32), np.zeros(2, np.int32), times, offsets, tape, tape_times, 1)

    build([0, 1])
    with pytest.raises(ValueError, match=r"users\[1\] is 2, expected 0 <= value < 2"):
        build([0, 2])
    with pytest.raises(ValueError, match=r"users\[0\] is -1"):
        build([-1, 0])
    with pytest.raises(ValueError, match="tape has shape"):
        build([0, 1], size=3)
    with pytest.raises(ValueError, match="both"):
        build([0, 1], times=np.zeros(2))
    with pytest.raises(TypeError):
        build([0, 1], times=np.zeros(2, np.float32), tape_times=np.zeros(2, np.float32))


def test_hash_is_of_the_data_not_of_its_source() -> None:
    data = build_interactions(["b", "a", "b"], [1, 2, 3])
    assert data.data_hash == build_interactions(np.array(["a", "b", "b"], object), np.array([2, 1, 3])).data_hash
    others = [
        build_interactions(["b", "a", "b"], [1, 2, 4]),
        build_interactions(["b", "a", "b"], [3, 2, 1]),
        build_interactions(["c", "a", "c"], [1, 2, 3]),
        build_interactions(["b", "a", "b"], ["1", "2", "3"]),
    ]
    assert len({data.data_hash, *(other.data_hash for other in others)}) == 5


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([], []), "no events"),
        (([1], [1, 2]), "columns differ in length: users has 1, items has 2"),
        (([1, 2], [1, 2]), "no user has 2 or more events"),
        (([1, "a"], [1, 2]), "row 2, column 'user'"),
        (([1, 1], [1, None]), "row 2, column 'item': the id is missing"),
        (([1, 1], [1, 2], [0, float("nan")]), "row 2, column 'timestamp': the timestamp is missing"),
        (([1, 1], [1, 2], np.array([0, np.inf])), "row 2, column 'timestamp'"),
        (([1, 1], [1, 2], [0, "yesterday"]), "row 2, column 'timestamp': 'yesterday' is not a timestamp"),
        (([1, 1], [1, 2], ["2020-01-01", 5]), "row 2, column 'timestamp': 5 is not a datetime"),
        (([1, 1], [1, 2], np.array(["2020-01-01", "NaT"], "M8[s]")), "row 2, column 'timestamp': .*missing"),
        (([1, 1], [1, 2], [0, 10**400]), "row 2, column 'timestamp'"),
    ],
)
def test_refused(columns: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_interactions(*columns)


def test_times_of_every_kind() -> None:
    half = DAY // 2
    assert as_times([1, 2.5]).tolist() == [1.0, 2.5]
    assert as_times(np.array([3, 1], np.int8)).dtype == np.int64
    assert as_times([2**53 + 1]).tolist() == [2**53 + 1]
    assert as_times([date(1970, 1, 2), datetime(1970, 1, 2, 12)]).tolist() == [DAY, DAY + half]
    assert as_times([datetime(1970, 1, 1, 12, tzinfo=UTC)]).tolist() == [half]
    assert as_times(["1970-01-02", "1970-01-01T14:00:00+02:00"]).tolist() == [DAY, half]
    assert as_times(np.array(["1970-01-02", "1969-12-31"], "M8[D]")).tolist() == [DAY, -DAY]


NS = 1_717_171_717_171_717_171


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1_717_171_717, 1_717_171_717_000, 0], "row 2, column 't': 1717171717000 looks like milliseconds .* seconds"),
        ([0.5, NS / 1000, 1_717_171_717.5], "row 3, column 't': 1717171717.5 looks like seconds .* microseconds"),
        ([float(NS), 2.0], "row 1, column 't': .* is a float beyond 2\\^53"),
        ([400_000_000, 400_000_000_000, 6_000_000_000], None),  # a clock of nanoseconds since its start
        ([1, 2**40], None),
        ([1_717_171_717, 5], None),
        ([date(2024, 1, 1), date(1970, 1, 1)], None),
    ],
)
@pytest.mark.parametrize("kind", [list, np.array])
def test_times_whose_order_is_doubtful(times: list[Any], message: str | None, kind: Any) -> None:
    values = kind(times) if not isinstance(times[0], date) else times
    with contextlib.nullcontext() if message is None else pytest.warns(UserWarning, match=message):
        as_times(values, "t")


def test_floats_among_integers_that_no_float_holds() -> None:
    for times in ([NS, 1.5], [1.5, NS]):
        with pytest.raises(DataError, match=r"row 2, column 't': with .* floats and integers beyond 2\^53"):
            as_times(times, "t")


@settings(deadline=None)
@given(events, st.integers(0, 4), st.integers(0, 4), st.sampled_from(["keep", "first", "last"]))
def test_filters(rows: list[tuple[int, int, int]], min_user: int, min_item: int, duplicates: Any) -> None:
    users, items, times = zip(*rows, strict=True)
    data = build_interactions(users, items, times)
    left = sorted(rows, key=lambda row: (row[0], row[2]))
    if duplicates != "keep":
        left = [left[index] for index in sorted(_kept(left, 1 if duplicates == "first" else -1))]
    while True:
        by_user, by_item = Counter(r[0] for r in left), Counter(r[1] for r in left)
        core = [r for r in left if by_user[r[0]] >= min_user and by_item[r[1]] >= min_item]
        if len(core) == len(left):
            break
        left = core
    if not left or max(Counter(r[0] for r in left).values()) < 2:
        with pytest.raises(DataError, match="after filtering with min_user"):
            filter_interactions(data, min_user=min_user, min_item=min_item, duplicates=duplicates)
        return
    result = filter_interactions(data, min_user=min_user, min_item=min_item, duplicates=duplicates)
    again = build_interactions(*zip(*left, strict=True))
    assert result.data_hash == again.data_hash
    assert result.timestamps is not None and again.timestamps is not None
    assert result.timestamps.tolist() == again.timestamps.tolist()


def _kept(rows: list[tuple[int, int, int]], step: int) -> list[int]:
    """Indices of the first (step 1) or last (−1) row of each user and item."""
    indices: dict[tuple[int, int], int] = {}
    for index in range(len(rows))[::step]:
        indices.setdefault(rows[index][:2], index)
    return list(indices.values())


@pytest.mark.parametrize("arguments", [{"min_user": -1}, {"min_item": 1.5}, {"duplicates": "drop"}, {"min_user": True}])
def test_filter_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} is"):
        filter_interactions(build_interactions([1, 1], [1, 2]), **arguments)
