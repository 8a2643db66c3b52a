"""Filters by name, counted by hand; tests/warprec compares each with WarpRec's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastseq.data.filters import apply_filter
from fastseq.data.interactions import build_interactions
from fastseq.data.readers import read_interactions
from fastseq.errors import DataError

DATA = build_interactions(["a"] * 4 + ["b"] * 3 + ["c"], [1, 2, 1, 3, 2, 1, 2, 3])
RATED = replace(DATA, ratings=np.array([5.0, 1, 3, 3, 2, 2, 5, 4]))


@pytest.mark.parametrize(
    ("name", "parameters", "want"),
    [
        ("UserMin", {"min_interactions": 4}, {"a": [1, 2, 1, 3]}),
        ("UserMax", {"max_interactions": 3}, {"b": [2, 1, 2], "c": [3]}),
        ("itemmin", {"min_interactions": 3}, {"a": [1, 2, 1], "b": [2, 1, 2]}),
        ("ItemMax", {"max_interactions": 2}, None),
        ("NRoundsKCore", {"rounds": 1, "min_interactions": 3}, {"a": [1, 2, 1], "b": [2, 1, 2]}),
        ("UserHeadN", {"num_interactions": 2}, {"a": [1, 2], "b": [2, 1], "c": [3]}),
        ("UserTailN", {"num_interactions": 2}, {"a": [1, 3], "b": [1, 2], "c": [3]}),
        ("DropUser", {"user_ids_to_filter": "a"}, {"b": [2, 1, 2], "c": [3]}),
        ("DropItem", {"item_ids_to_filter": [1, 9]}, {"a": [2, 3], "b": [2, 2], "c": [3]}),
        ("Duplicates", {"keep": "first"}, {"a": [1, 2, 3], "b": [2, 1], "c": [3]}),
        ("MinRating", {"min_rating": 3}, {"a": [1, 1, 3], "b": [2], "c": [3]}),
        ("UserAverage", {}, None),
    ],
)
def test_filters(name: str, parameters: dict[str, Any], want: dict[str, list[int]] | None) -> None:
    if want is None:
        with pytest.raises(DataError, match=f"no user keeps 2 or more events after the filter {name}"):
            apply_filter(RATED, name, **parameters)
        return
    left = apply_filter(RATED, name, **parameters)
    assert {user: left.history(user) for user in left.user_ids.values} == want
    assert left.filters[0]["filter"].lower() == name.lower() and left.filters[0].keys() == {"filter", *parameters}
    assert left.ratings is not None and len(left.ratings) == left.n_events


def test_what_a_filter_lacks_is_named() -> None:
    with pytest.raises(DataError, match=r"MinRating needs ratings.*rating=.*reader\.labels\.rating_label"):
        apply_filter(DATA, "MinRating", min_rating=1)
    for value in ("1", 1.0):
        with pytest.raises(DataError, match=r"DropItem: .*the known id is 1, an integer: convert ids with int\(id\)"):
            apply_filter(DATA, "DropItem", item_ids_to_filter=[2, value])


def test_ratings_and_order_are_read(tmp_path: Any) -> None:
    pytest.importorskip("polars")
    path = tmp_path / "data.csv"
    path.write_text("user_id,item_id,stars,timestamp\n2,7,1.5,9\n1,8,4,3\n2,9,5,1\n1,7,2,3\n")
    data = read_interactions(path, rating="stars", keep_order=True)
    assert data.ratings is not None and data.order is not None
    assert data.item_ids.decode(data.items) == [8, 7, 9, 7]
    assert data.ratings.tolist() == [4, 2, 5, 1.5] and data.order.tolist() == [1, 3, 2, 0]
    assert data.data_hash == read_interactions(path).data_hash
    with pytest.raises(DataError, match=r"no column 'rating'.*reader\.labels\.rating_label"):
        read_interactions(path, rating="rating")
