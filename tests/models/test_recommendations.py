"""recommendations: the answers of recommend, as tables of every kind."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas
import polars as pl
import pyarrow
import pytest
import torch

import fastseq
from fastseq import Caser, Catalogue, Recommendations, recommendations
from fastseq.data import Interactions, from_sequences, leave_one_out, make_demo, read_histories
from fastseq.data.ids import IdMap
from fastseq.errors import DataError
from fastseq.models import MODELS
from fastseq.models.base import SequentialRecommender
from fastseq.models.recommend import HISTORIES_PER_PASS
from tests.models.small import small_params

DATA = make_demo(n_users=700, n_items=60, mean_length=8.0)
INTEGERS = from_sequences({int(u[5:]) * 10: [int(i[5:]) for i in DATA.history(u)] for u in DATA.user_ids.values[:40]})


def build(name: str, data: Interactions) -> SequentialRecommender:
    model = MODELS[name](small_params(name), {"n_users": data.n_users, "n_items": data.n_items})
    model.catalogue = Catalogue(data.item_ids, data.user_ids)
    with torch.no_grad():
        for each in model.parameters():
            torch.nn.init.normal_(each, std=0.5)
    return model


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> SequentialRecommender:
    return build(request.param, DATA)


def rows_of(names: list[Any], answers: list[fastseq.Recommendation]) -> list[tuple[Any, Any, float, int]]:
    """What recommend gave, as the rows of the table."""
    return [
        (name, item, score, rank)
        for name, answer in zip(names, answers, strict=True)
        for rank, (item, score) in enumerate(zip(*answer, strict=True), start=1)
    ]


def recommended(model: SequentialRecommender, data: Interactions, k: int, **options: Any) -> list[Any]:
    names = data.user_ids.decode(range(data.n_users))
    histories = [data.history(name) for name in names]
    users = names if model.needs_user else None
    return rows_of(names, model.recommend(histories, k, users=users, **options))


@pytest.mark.parametrize("filter_seen", [True, False])
def test_gives_what_recommend_gives(model: SequentialRecommender, filter_seen: bool) -> None:
    """Bit for bit, over several passes and blocks, also where fewer than k are unseen."""
    want = recommended(model, DATA, 55, filter_seen=filter_seen)
    table = recommendations(model, DATA, 55, filter_seen=filter_seen)
    with mock.patch("fastseq.models.recommendations.ROWS_PER_BLOCK", HISTORIES_PER_PASS * 55):
        blocks = list(table)
        assert len(blocks) == 2
        assert table.to_polars().rows() == want
    assert [row for block in blocks for row in zip(*(each.tolist() for each in block), strict=True)] == want
    assert (len(want) < 55 * DATA.n_users) == filter_seen


@pytest.mark.parametrize("name", MODELS)
def test_integers_stay_integers_in_every_kind_of_table(name: str, tmp_path: Path) -> None:
    model = build(name, INTEGERS)
    table = recommendations(model, INTEGERS, 3)
    want = recommended(model, INTEGERS, 3)
    frame = table.to_polars()
    assert frame.schema == {"user": pl.Int64, "item": pl.Int64, "score": pl.Float32, "rank": pl.Int32}
    assert frame.rows() == want
    assert list(table.to_pandas().itertuples(index=False, name=None)) == want
    assert [tuple(row.values()) for row in table.to_arrow().to_pylist()] == want
    assert table.write(tmp_path / "t.parquet") == len(want)
    assert pl.read_parquet(tmp_path / "t.parquet").rows() == want
    table.write(tmp_path / "t.csv")
    assert pl.read_csv(tmp_path / "t.csv", schema_overrides={"score": pl.Float32}).rows() == want


def test_tables_of_strings_and_of_nothing() -> None:
    model = build("SASRec", DATA)
    for table, size in ((recommendations(model, DATA, 2), 2 * DATA.n_users), (recommendations(model, [], 2), 0)):
        frame, arrow, frames = table.to_polars(), table.to_arrow(), table.to_pandas()
        assert frame["item"].dtype == pl.String and arrow.schema.field("item").type == pyarrow.string()
        assert len(frame) == len(arrow) == len(frames) == size and list(frames) == frame.columns
        assert frames["score"].dtype == np.float32 and frames["rank"].dtype == np.int32
    assert isinstance(table, Recommendations)


def test_takes_what_recommend_takes(model: SequentialRecommender) -> None:
    histories = [["item-0001", "item-0002"], [], ["item-0003"]]
    options: dict[str, Any] = {"unknown_users": "mean"}
    want = model.recommend(histories, 4, **options)
    assert recommendations(model, histories, 4, **options).to_polars().rows() == rows_of([0, 1, 2], want)
    by_user = dict(zip(["user-0001", "user-0002", "new"], histories, strict=True))
    keyed = model.recommend(by_user, 4, **options)
    rows = rows_of(list(keyed), list(keyed.values()))
    for given in (by_user, pandas.Series(by_user)):
        assert recommendations(model, given, 4, **options).to_polars().rows() == rows
    users = [*by_user]
    assert recommendations(model, histories, 4, users=users, **options).to_polars().rows() == rows
    unnamed = recommendations(model, histories, 4, users=[*users[:2], None], **options).to_polars()
    assert unnamed["user"].unique(maintain_order=True).to_list() == [0, 1, 2]
    assert unnamed["item"].to_list() == [row[1] for row in rows]


def test_the_users_who_were_asked_for(model: SequentialRecommender) -> None:
    users = ["user-0400", "user-0002", "user-0400"]
    want = model.recommend([DATA.history(u) for u in users], 3, users=users if model.needs_user else None)
    assert recommendations(model, DATA, 3, users=users).to_polars().rows() == rows_of(users, want)
    with pytest.raises(DataError, match="nobody"):
        recommendations(model, DATA, users=["nobody"])


def test_a_part_has_the_histories_of_its_evaluation(model: SequentialRecommender) -> None:
    split = leave_one_out(DATA)
    users = DATA.user_ids.decode(split.part("test").users)
    assert len(users) > 0
    want = model.recommend([DATA.history(u)[:-1] for u in users], 3, users=users if model.needs_user else None)
    table = recommendations(model, split, 3, part="test")
    assert table.to_polars().rows() == rows_of(users, want)
    some = recommendations(model, split, 3, part="test", users=users[5:7]).to_polars()
    assert some["user"].unique(maintain_order=True).to_list() == users[5:7]
    assert recommendations(model, split, 3).to_polars().equals(recommendations(model, DATA, 3).to_polars())
    with pytest.raises(ValueError, match="part is for a Split"):
        recommendations(model, DATA, part="test")


def test_a_user_who_is_not_ranked_in_a_part_is_named() -> None:
    data = from_sequences({"long": ["a", "b", "c", "d"], "short": ["a"]})
    with pytest.raises(DataError, match="'short' has no history in the part 'test'"):
        recommendations(build("SASRec", data), leave_one_out(data), part="test", users=["long", "short"])


def test_items_that_are_unknown_are_counted_and_named() -> None:
    model = build("GRU4Rec", DATA)
    frame = pl.DataFrame(
        {"who": [1, 1, 1, 2, 3, 3], "what": ["item-0001", "a, b", "x", "x", "y", "z"], "at": [3, 2, 1, 1, 1, 2]}
    )
    given = read_histories(frame, user="who", item="what", timestamp="at")
    with pytest.raises(DataError, match=r"4 of the histories' items, in 5 events,.*60 items.*'a, b', 'x', 'y', …"):
        recommendations(model, given)
    assert len(recommendations(model, given, 2, users=[1], unknown_items="skip").to_polars()) == 2
    with pytest.raises(DataError, match="2 of the histories' items, in 2 events"):
        recommendations(model, given, users=[1])
    table = recommendations(model, given, 2, unknown_items="skip")
    with pytest.warns(UserWarning, match=r"2 of 3 histories without an event \(user 2\)"):
        rows = table.to_polars().rows()
    assert rows == rows_of([1, 2, 3], model.recommend([["item-0001"], [], []], 2))


def test_ids_of_a_table_are_taken_as_the_catalogue_has_them() -> None:
    """A column is text for one word in it; then all its numbers are."""
    model = build("Caser", INTEGERS)
    user, item = int(INTEGERS.user_ids.values[3]), int(INTEGERS.item_ids.values[5])
    text = read_histories(pl.DataFrame({"user_id": [str(user)], "item_id": [str(item)]}), timestamp=None)
    want = model.recommend({user: [item]}, 3)[user]
    assert recommendations(model, text, 3).to_polars().rows() == rows_of([str(user)], [want])
    items, users = (IdMap([str(i) for i in ids.values]) for ids in (INTEGERS.item_ids, INTEGERS.user_ids))
    model.catalogue = Catalogue(items, users)
    numbers = read_histories(pl.DataFrame({"user_id": [user], "item_id": [item]}), timestamp=None)
    want = model.recommend({str(user): [str(item)]}, 3)[str(user)]
    assert recommendations(model, numbers, 3).to_polars().rows() == rows_of([user], [want])


def test_caser_names_the_user_it_does_not_know() -> None:
    model = build("Caser", DATA)
    given = read_histories(pl.DataFrame({"user_id": ["new"], "item_id": ["item-0001"]}), timestamp=None)
    with pytest.raises(DataError, match=r"user 'new'.*unknown_users='mean'"):
        recommendations(model, given)
    want = model.recommend([["item-0001"]], 2, unknown_users="mean")
    assert recommendations(model, given, 2, unknown_users="mean").to_polars().rows() == rows_of(["new"], want)
    assert isinstance(model, Caser)


def test_no_mode_and_no_gradient_setting_is_left_between_blocks() -> None:
    model = build("SASRec", DATA).train()
    with mock.patch("fastseq.models.recommendations.ROWS_PER_BLOCK", 1):
        for _ in recommendations(model, DATA, 1):
            assert model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_progress_counts_users(tmp_path: Path) -> None:
    done: list[int] = []
    with mock.patch("fastseq.models.recommendations.ROWS_PER_BLOCK", 1):
        recommendations(build("SASRec", DATA), DATA, 1).write(tmp_path / "t.jsonl", on_progress=done.append)
    assert done == [HISTORIES_PER_PASS, DATA.n_users]
    assert all(a < b for a, b in pairwise(done))


@pytest.mark.parametrize(
    ("histories", "arguments", "message"),
    [
        (["item-0001"], {}, "one history"),
        (pl.DataFrame({"item": [1]}), {}, "read_histories"),
        ([["item-0001"]], {"k": 0}, "k is 0"),
        ([["item-0001"]], {"users": ["a", "b"]}, "2 entries for 1 histories"),
        ([["item-0001"]], {"users": "a"}, "users must be a list"),
        ([["item-0001"]], {"users": [1.5]}, "neither a string nor an integer"),
        ([["item-0001"]], {"unknown_items": "drop"}, "unknown_items is 'drop'"),
    ],
)
def test_refuses_wrong_arguments(histories: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recommendations(build("SASRec", DATA), histories, **arguments)


@pytest.mark.parametrize(("kind", "extra"), [("polars", "data"), ("pandas", "tables"), ("pyarrow", "tables")])
def test_a_missing_package_is_named_with_its_extra(kind: str, extra: str) -> None:
    table = recommendations(build("SASRec", DATA), DATA)
    convert = getattr(table, f"to_{kind.removeprefix('py')}")
    with mock.patch.dict("sys.modules", {kind: None}), pytest.raises(ImportError, match=kind) as error:
        convert()
    assert f"'fastseq-rec[{extra}]'" in str(error.value)
