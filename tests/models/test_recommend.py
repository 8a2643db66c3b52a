"""recommend: raw ids in and out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastseq import Catalogue, GRU4Rec, SASRec
from fastseq.data.ids import IdMap
from fastseq.models.base import SequentialRecommender
from fastseq.models.recommend import HISTORIES_PER_PASS

from .test_base import GRU, SAS

N_ITEMS = 30
ITEMS = [f"item-{i:02}" for i in range(N_ITEMS)]


@pytest.fixture(params=[GRU4Rec, SASRec], ids=lambda c: c.__name__)
def model(request: pytest.FixtureRequest) -> SequentialRecommender:
    params = {GRU4Rec: GRU, SASRec: SAS}[request.param]
    model = request.param({**params, "max_seq_len": 5, "dropout_prob": 0.5}, {"n_users": 3, "n_items": N_ITEMS})
    model.catalogue = Catalogue(items=IdMap(ITEMS))
    return model


def expected(model: SequentialRecommender, history: list[str], k: int, filter_seen: bool = True) -> list[str]:
    """The same by predict and a full sort."""
    indices = [ITEMS.index(i) for i in history]
    model.eval()
    padded = torch.tensor([indices[-5:] or [N_ITEMS]])
    with torch.no_grad():
        scores = model.predict(user_seq=padded, seq_len=torch.tensor([min(5, len(indices))]))[0]
    model.train()
    if filter_seen:
        scores[indices] = -torch.inf
    order = scores.sort(descending=True, stable=True).indices.tolist()
    return [ITEMS[i] for i in order[: min(k, N_ITEMS - len(set(indices)) * filter_seen)]]


HISTORIES = [ITEMS[3:6], [], ITEMS[:12], [ITEMS[7]] * 9, ITEMS[:-2], [ITEMS[1]]]


@pytest.mark.parametrize("filter_seen", [True, False])
def test_recommends_the_best_unseen_items(model: SequentialRecommender, filter_seen: bool) -> None:
    """Ordinary, empty, over-long (filtered by all of it), repeated, and nearly the whole catalogue."""
    result = model.recommend(HISTORIES, k=4, filter_seen=filter_seen)
    for history, (items, scores) in zip(HISTORIES, result, strict=True):
        assert items == expected(model, history, 4, filter_seen)
        assert len(scores) == len(items)
        assert scores == sorted(scores, reverse=True)
    assert len(result[4].items) == (2 if filter_seen else 4)


def test_one_history_is_the_same_as_one_of_many(model: SequentialRecommender) -> None:
    one = model.recommend(HISTORIES[0], k=3)
    many = model.recommend(HISTORIES[:1], k=3)
    assert one == many[0]
    assert one.items == expected(model, HISTORIES[0], 3)
    assert model.recommend([]) == []


def test_many_histories_are_the_same_as_each_alone(model: SequentialRecommender) -> None:
    histories = [[ITEMS[i % N_ITEMS], ITEMS[(7 * i) % N_ITEMS]] for i in range(HISTORIES_PER_PASS + 5)]
    result = model.recommend(histories, k=2)
    assert len(result) == len(histories)
    for i in (0, 3, HISTORIES_PER_PASS - 1, HISTORIES_PER_PASS, len(histories) - 1):
        assert result[i].items == expected(model, histories[i], 2)


def test_mode_is_restored_and_nothing_is_recorded(model: SequentialRecommender) -> None:
    model.train()
    rng = model.rng.tolist()
    assert model.recommend([ITEMS[:2]], k=1) == model.recommend([ITEMS[:2]], k=1)  # no dropout
    assert model.training
    assert model.rng.tolist() == rng
    model.eval()
    with pytest.raises(ValueError, match="unknown"):
        model.recommend([["nothing"]])
    assert not model.training


def test_without_a_catalogue_indices_are_the_ids(model: SequentialRecommender) -> None:
    named = model.recommend([ITEMS[2:5]], k=3)[0]
    model.catalogue = None
    plain = model.recommend([[2, 3, 4]], k=3)[0]
    assert [ITEMS[int(i)] for i in plain.items] == named.items
    assert model.recommend(torch.tensor([2, 3, 4]), k=3) == plain
    with pytest.raises(ValueError, match="history 0, event 1: item 30 is not in the catalogue of 30 items"):
        model.recommend([[2, 30]])


def test_unknown_items_are_an_error_or_skipped(model: SequentialRecommender) -> None:
    with pytest.raises(ValueError, match="history 1, event 2: item 'new' is not in the catalogue"):
        model.recommend([ITEMS[:1], [ITEMS[0], ITEMS[1], "new"]])
    skipped = model.recommend([["new", ITEMS[4], "newer"], ["new"]], k=3, unknown_items="skip")
    assert skipped == model.recommend([[ITEMS[4]], []], k=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"unknown_items": "drop"}, "unknown_items is 'drop', expected one of error, skip"),
        ({"unknown_users": "skip"}, "unknown_users is 'skip', expected one of error, mean"),
    ],
)
def test_bad_arguments_are_named(model: SequentialRecommender, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.recommend([ITEMS[:2]], **arguments)


def test_a_history_must_be_a_list(model: SequentialRecommender) -> None:
    with pytest.raises(ValueError, match="history 1 is 'item-01', expected a list"):
        model.recommend([ITEMS[:2], "item-01"])  # type: ignore[list-item]
