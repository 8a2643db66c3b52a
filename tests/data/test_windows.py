"""Windows against their definition, written out one target at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseq import _C
from fastseq.data.windows import Windows, pack_windows

Users = list[tuple[int, int]]  # events in training, events after it


def boundaries(users: Users) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([train + later for train, later in users], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return offsets, offsets[:-1] + np.array([train for train, _ in users], np.int64)


def rows(windows: Windows) -> list[tuple[int, int, int, int]]:
    arrays = (windows.user, windows.start, windows.stop, windows.first_target)
    assert all(array.dtype == np.int64 for array in arrays)
    return list(zip(*(array.tolist() for array in arrays), strict=True))


def test_written_out() -> None:
    # User 0 trains on rows 0 ... 10 (one more event is held out), user 1 on 12 and 13, user 2 on one event only.
    offsets, stop = boundaries([(11, 1), (2, 0), (1, 3)])
    assert rows(pack_windows(offsets, stop, 4, 3)) == [(0, 0, 4, 1), (0, 3, 7, 5), (0, 6, 10, 8), (1, 12, 13, 13)]
    assert rows(pack_windows(offsets, stop, 4)) == [(0, 0, 4, 1), (0, 4, 8, 5), (0, 6, 10, 9), (1, 12, 13, 13)]
    assert rows(pack_windows(offsets, stop, 4, context=True)) == [
        (0, 0, 4, 1),
        (0, 1, 8, 5),
        (0, 5, 10, 9),
        (1, 12, 13, 13),
    ]
    assert rows(pack_windows(offsets, stop, 8, per_target=True))[8:] == [(0, 1, 9, 9), (0, 2, 10, 10), (1, 12, 13, 13)]


users_strategy = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=6)


@settings(deadline=None, max_examples=300)
@given(users=users_strategy, max_len=st.integers(1, 12), data=st.data())
def test_every_target_once_and_inputs_as_specified(users: Users, max_len: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, max_len))
    context = data.draw(st.booleans())
    offsets, stop = boundaries(users)
    windows = rows(pack_windows(offsets, stop, max_len, stride, context=context))
    counted = [target for _, _, end, first in windows for target in range(first, end + 1)]
    expected = [t for a, b in zip(offsets[:-1], stop, strict=True) for t in range(a + 1, b)]
    assert counted == expected
    for user, start, end, first in windows:
        begin = int(offsets[user])
        assert begin <= start < first <= end < stop[user]
        if context:
            assert start == max(begin, first - max_len)
        else:
            assert end - start <= max_len
            assert start == begin or (end - start == max_len and end + 1 - first <= stride)


@settings(deadline=None, max_examples=100)
@given(users=users_strategy, max_len=st.integers(1, 12))
def test_one_window_per_target(users: Users, max_len: int) -> None:
    offsets, stop = boundaries(users)
    expected = [
        (u, max(a, t - max_len), t, t)
        for u, (a, b) in enumerate(zip(offsets[:-1].tolist(), stop.tolist(), strict=True))
        for t in range(a + 1, b)
    ]
    assert rows(pack_windows(offsets, stop, max_len, per_target=True)) == expected


@pytest.mark.parametrize(
    ("max_len", "stride", "message"),
    [(0, 1, "max_len is 0"), (4, 0, "stride is 0"), (4, 5, r"stride is 5, expected 1 \.\.\. max_len = 4")],
)
def test_out_of_range(max_len: int, stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_windows(*boundaries([(5, 0)]), max_len, stride)


def test_stop_outside_offsets() -> None:
    offsets, stop = boundaries([(5, 0), (3, 0)])
    with pytest.raises(ValueError, match=r"stop\[0\] is 6, expected .* = 5"):
        pack_windows(offsets, stop + 1, 4)
    with pytest.raises(ValueError, match=r"offsets has shape \[2\], expected \[3\]"):
        pack_windows(offsets[:-1], stop, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_offsets": [5, 9]}, "window 0 starts at 0, expected a row of user 0, who begins at 5"),
        ({"stop": [9]}, "window 0 has start 0, stop 9"),
        ({"user": [1]}, "window 0 has user 1, expected 0 <= user < 1"),
        ({"order": [1]}, r"order\[0\] is 1, expected 0 <= window < 1"),
        ({"max_len": 0}, "max_len is 0, expected at least 1"),
        ({"targets": [0] * 4}, r"targets has shape \[4\], expected \[3\]"),
    ],
)
def test_gathering_checks_what_it_copies(change: dict[str, object], message: str) -> None:
    """The window of rows 0 ... 2 with targets 1 ... 3, of one user with 9 events."""
    sizes = {"items": 3, "offsets": 2, "users": 1, "rows": 3, "targets": 3, "target_sequences": 3}
    values: dict[str, object] = {"tape": range(9), "user_offsets": [0, 9], "user": [0], "start": [0], "stop": [3]}
    values |= {"first_target": [1], "order": [0], "max_len": 4} | {name: [0] * size for name, size in sizes.items()}

    def gather(values: dict[str, object]) -> object:
        arrays = {
            name: value if name == "max_len" else np.array(value, np.int32 if name == "offsets" else np.int64)
            for name, value in values.items()
        }
        return _C.gather_windows(**arrays, l2_items=None, l2_weights=None)

    assert gather(values) == 0
    with pytest.raises(ValueError, match=message):
        gather(values | change)
