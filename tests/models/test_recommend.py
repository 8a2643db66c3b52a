"""recommend: raw ids in and out."""

from __future__ import annotations

import copy
import pickle
from typing import Any
from unittest import mock

import pytest
import torch

from fastseq import Catalogue, GRU4Rec, SASRec, ops
from fastseq.data.ids import IdMap
from fastseq.errors import CheckpointError
from fastseq.models.base import SequentialRecommender
from fastseq.models.recommend import HISTORIES_PER_PASS
from fastseq.ops import set_backend
from tests.ops.backends import DEVICE, needs_triton

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


@needs_triton
def test_a_model_that_has_diverged_is_refused_on_a_gpu_too(model: SequentialRecommender) -> None:
    """Where the ranking does not look at the scores."""
    with torch.no_grad():
        model.item_embedding.weight[3] = torch.nan
    with (
        set_backend("triton"),
        pytest.raises(CheckpointError, match=f"{type(model).__name__} gives outputs that are not"),
    ):
        model.to(DEVICE).recommend([[ITEMS[1]], [ITEMS[3]]], k=2)


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
    skipped = model.recommend([["new", ITEMS[4], "newer"]], k=3, unknown_items="skip")
    assert skipped == model.recommend([[ITEMS[4]]], k=3)
    with pytest.warns(UserWarning, match=r"left 1 of 2 histories without an event \(history 1\)"):
        skipped = model.recommend([[ITEMS[4]], ["new"]], k=3, unknown_items="skip")
    assert skipped == model.recommend([[ITEMS[4]], []], k=3)


@pytest.mark.parametrize("unknown", ["error", "skip"])
@pytest.mark.parametrize(
    ("known", "item", "message"),
    [
        (range(1000, 1030), "1001", r"'1001' is a string, and the known id is 1001, an integer: .*int\(id\)"),
        (range(1000, 1030), b"1001", r"b'1001' is bytes, and the known id is 1001, an integer: .*int\(id\)"),
        (range(1000, 1030), 1001.0, r"1001.0 is a float, and the known id is 1001, an integer: .*int\(id\)"),
        (
            [str(number) for number in range(1000, 1030)],
            1001,
            r"1001 is an integer, and the known id is '1001', a string: .*str\(id\)",
        ),
        (ITEMS, " item-01", r"' item-01' is a string, and the known id is 'item-01', a string: .*id.strip\(\)"),
        (None, "7", r"'7' is a string, and the known id is 7, an integer"),
    ],
)
def test_an_item_unknown_for_its_type_alone(
    model: SequentialRecommender, known: Any, item: Any, message: str, unknown: Any
) -> None:
    model.catalogue = None if known is None else Catalogue(items=IdMap(list(known)))
    first = 3 if known is None else model.catalogue.items.values[3]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=f"history 0, event 1: item {message}"):
        model.recommend([[first, item]], unknown_items=unknown)


def test_histories_in_any_collection(model: SequentialRecommender) -> None:
    """What has keys keeps them; everything else is a list."""
    want = model.recommend(HISTORIES[:2], k=3)
    by_user = dict(zip(["u", "w"], HISTORIES[:2], strict=True))
    assert model.recommend(by_user, k=3) == dict(zip(["u", "w"], want, strict=True))
    assert model.recommend((iter(history) for history in HISTORIES[:2]), k=3) == want
    assert model.recommend(iter(HISTORIES[0]), k=3) == want[0]  # type: ignore[call-overload]
    assert model.recommend({}) == {}
    for refused in ("item-01", 5, None, set(HISTORIES[0]), {"u": "item-01"}, {"u": 5}):
        with pytest.raises(ValueError, match="expected a list of item ids"):
            model.recommend(refused)
    pandas = pytest.importorskip("pandas")
    assert model.recommend(pandas.Series(by_user), k=3) == dict(zip(["u", "w"], want, strict=True))
    assert model.recommend(pandas.Series(HISTORIES[:2]), k=3) == want
    assert model.recommend(pandas.Series(HISTORIES[0], index=[5, 6, 7]), k=3) == want[0]
    assert model.recommend([pandas.Series(HISTORIES[0], index=[5, 6, 7])], k=3) == want[:1]
    with pytest.raises(ValueError, match="histories is a DataFrame"):
        model.recommend(pandas.DataFrame({"item_id": HISTORIES[0]}))
    with pytest.raises(ValueError, match="history 'w', event 0: item 'new'"):
        model.recommend({"u": [], "w": ["new"]})


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


def test_item_codes_change_no_answer_and_follow_the_table(model: SequentialRecommender) -> None:
    table = model.item_embedding.weight

    def checked() -> int:
        """Recommends with codes and without; returns how often codes were made."""
        assert model.item_codes is not None
        with mock.patch.object(ops, "item_codes", wraps=ops.item_codes) as making:
            given = [model.recommend(history, k=4) for history in HISTORIES]
            given += model.recommend(HISTORIES, k=4)
        codes, model.item_codes = model.item_codes, None
        assert given == [model.recommend(history, k=4) for history in HISTORIES] + model.recommend(HISTORIES, k=4)
        model.item_codes = codes
        return making.call_count

    model.keep_item_codes()
    with mock.patch.object(ops, "topk", wraps=ops.topk) as ranking:
        model.recommend(HISTORIES[0])
        model.recommend(HISTORIES * 2)
    few, many = (call.kwargs["codes"] for call in ranking.call_args_list)
    assert few is not None and many is None  # 12 histories
    assert checked() == 0
    with torch.no_grad():
        table.neg_()
    assert checked() == 1 and checked() == 0
    state = model.state_dict()
    model.load_state_dict({name: 2 * x if x.is_floating_point() else x for name, x in state.items()})
    assert checked() == 1
    loss = model(torch.zeros(2, 5, dtype=torch.int64), torch.tensor([5, 5])).sum()
    loss.backward()
    for fused in (False, True):
        torch.optim.Adam(model.parameters(), lr=1.0, fused=fused).step()
        assert checked() == 1
    model.item_embedding.weight = torch.nn.Parameter(table.detach().flip(0))
    assert checked() == 1
    model.item_embedding.weight.data = torch.randn_like(table)
    assert checked() == 1
    model.item_embedding.weight.data.neg_()  # which PyTorch counts nowhere
    model.keep_item_codes()
    assert checked() == 1
    assert checked() == 0 and copy.deepcopy(model).recommend(HISTORIES[0]) == model.recommend(HISTORIES[0])
    assert len(pickle.dumps(model.item_codes)) < 200
    model.double()
    assert checked() == 0
