"""Raw ids ↔ indices: order, exactness, refusals, saving."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseq.data.ids import IdMap, factorise
from fastseq.errors import DataError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
columns = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1) | st.lists(texts, min_size=1)


@settings(deadline=None)
@given(columns)
def test_round_trip(values: list[int] | list[str]) -> None:
    ids = IdMap(values)
    assert list(ids.values) == sorted(set(values))
    indices = ids.encode(values)
    assert indices.dtype == np.int64
    assert ids.decode(indices) == values
    assert ids == IdMap(values[::-1] * 2)
    again = IdMap.from_arrays(ids.to_arrays())
    assert again == ids and again.digest() == ids.digest() and again.kind == ids.kind


@settings(deadline=None)
@given(columns)
def test_factorise_gives_the_map_and_each_row(values: list[int] | list[str]) -> None:
    ids, codes = factorise(values, "user")
    assert codes.dtype == np.int32
    assert ids == IdMap(values) and codes.tolist() == ids.encode(values).tolist()
    if isinstance(values[0], int):
        array_ids, array_codes = factorise(np.array(values, np.int64), "user")
        assert array_ids == ids and array_codes.tolist() == codes.tolist()


def test_integers_sort_numerically_and_strings_by_code_point() -> None:
    assert IdMap([10, 9, -1]).decode([0, 1, 2]) == [-1, 9, 10]
    assert IdMap(["10", "9", "é", "Z", "😀", "￿"]).decode(range(6)) == ["10", "9", "Z", "é", "￿", "😀"]


def test_large_integers_are_exact() -> None:
    near = [2**53, 2**53 + 1, 2**63 - 1, 2**63 - 2]
    assert IdMap(near).encode(near).tolist() == [0, 1, 3, 2]
    assert factorise(np.array(near, np.uint64), "user")[1].tolist() == [0, 1, 3, 2]


def test_unknown_ids() -> None:
    ids = IdMap([3, 5])
    assert ids.encode([5, 4, "3", 3.5, True, 2**70], unknown="-1").tolist() == [1, -1, -1, -1, -1, -1]
    assert ids.encode(np.array([2**64 - 1, 3], np.uint64), unknown="-1").tolist() == [-1, 0]
    with pytest.raises(DataError, match="unknown id 4: not among the 2 known int ids"):
        ids.encode([5, 4])
    with pytest.raises(DataError, match="unknown id 7"):
        IdMap(["7"]).encode(["7", 7])
    with pytest.raises(DataError, match="index 2 is outside"):
        ids.decode([0, 2])
    assert ids.encode([]).tolist() == [] and ids.decode([]) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, "2"], "row 2, column 'user': '2' is a string, the ids before it are integers"),
        (["1", "2", 3], "row 3, column 'user': 3 is an integer, the ids before it are strings"),
        ([1, None], "row 2, column 'user': the id is missing"),
        ([1, float("nan")], "row 2, column 'user': the id is missing"),
        ([1, 2.0], r"2\.0 \(float\) is neither"),
        ([True], "neither a string nor an integer"),
        ([2**63], "does not fit"),
        (["a", "\ud800"], "row 2, column 'user': .* is not valid Unicode"),
        (np.array([1, 2**63], np.uint64), "row 2, column 'user': 9223372036854775808 does not fit"),
    ],
)
def test_refused(values: list[object], message: str) -> None:
    for build in (lambda: IdMap(values, name="user"), lambda: factorise(values, "user")):  # type: ignore[arg-type]
        with pytest.raises(DataError, match=message):
            build()


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"values": np.array([2, 1])},
        {"values": np.array([1.0])},
        {"bytes": np.frombuffer(b"ba", np.uint8), "offsets": np.array([0, 1, 2])},
        {"bytes": np.frombuffer(b"ab", np.uint8), "offsets": np.array([0, 1])},
        {"bytes": np.frombuffer(b"\xff", np.uint8), "offsets": np.array([0, 1])},
    ],
)
def test_foreign_arrays_are_refused(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataError, match="saved ids"):
        IdMap.from_arrays(arrays)


def test_kinds_differ() -> None:
    assert IdMap([1]) != IdMap(["1"]) and IdMap([1]).digest() != IdMap(["1"]).digest()
    assert IdMap(["ab", "c"]).digest() != IdMap(["a", "bc"]).digest()
