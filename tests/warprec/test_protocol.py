"""Which events are kept, trained on and ranked, and by which metrics: event for event as WarpRec's own classes say."""

from __future__ import annotations

from . import real  # skips where WarpRec is not installed

# isort: split
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from warprec.data import Dataset
from warprec.data.eval_loaders import SampledEvaluationDataset
from warprec.data.filtering import apply_filtering
from warprec.data.schema import SplitSpec
from warprec.data.splitting import Splitter
from warprec.evaluation.evaluator import Evaluator
from warprec.utils.registry import filter_registry

from fastseq import SASRec
from fastseq.data import Interactions, Split, read_interactions, warprec_split
from fastseq.data.filters import FILTERS, apply_filter
from fastseq.training import evaluate, evaluation
from fastseq.training.metrics import LIST_METRICS

COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
Rows = list[tuple[Any, ...]]


def odd(n_events: int = 400, n_users: int = 60, n_items: int = 50, seed: int = 3) -> real.pl.DataFrame:
    """Users of one event and many, ties in time, repeats, items that occur once; in no order."""
    generator = np.random.default_rng(seed)
    users = (n_users * generator.random(n_events) ** 3).astype(np.int64)
    items = (n_items * generator.random(n_events) ** 2).astype(np.int64) * 7
    return real.pl.DataFrame(
        [users, items, generator.integers(1, 6, n_events), generator.integers(0, 40, n_events)], COLUMNS
    )


@pytest.fixture(scope="module")
def ml_100k(shared_data: Path) -> real.pl.DataFrame:
    frame = real.pl.read_csv(shared_data / "ml-100k.inter", separator="\t", new_columns=COLUMNS)
    return frame.with_columns(real.pl.col("timestamp").cast(real.pl.Int64))


@pytest.fixture(params=["odd", "ml-100k"])
def frame(request: pytest.FixtureRequest) -> real.pl.DataFrame:
    return odd() if request.param == "odd" else request.getfixturevalue("ml_100k")


def read(frame: real.pl.DataFrame) -> Interactions:
    return read_interactions(frame, rating="rating", keep_order=True)


def rows_of(data: Interactions, kept: Any = slice(None)) -> Rows:
    """(user, item, timestamp) of tape rows, in tape order."""
    users, items = data.user_ids.decode(data.event_users[kept]), data.item_ids.decode(data.items[kept])
    assert data.timestamps is not None
    return list(zip(users, items, data.timestamps[kept].tolist(), strict=True))


def parts_of(split: Split) -> list[Rows]:
    """Training, validation and test events."""
    data, users, rows = split.interactions, split.interactions.event_users, np.arange(split.interactions.n_events)
    part = (rows >= split.train_stop[users]).astype(int) + (rows >= split.validation_stop[users])
    return [rows_of(data, part == number) for number in range(3)]


def in_time(frame: Any) -> Rows:
    """Rows of WarpRec's frame by user and time; ties as they stand."""
    wanted = frame.to_native().select("user_id", "item_id", "timestamp").rows()
    return sorted(wanted, key=lambda row: (row[0], row[2]))


RATED = [
    ("MinRating", {"min_rating": 3}),
    ("UserAverage", {}),
    ("ItemAverage", {}),
]
COUNTED = [
    ("UserMin", {"min_interactions": 21}),
    ("UserMax", {"max_interactions": 60}),
    ("ItemMin", {"min_interactions": 10}),
    ("ItemMax", {"max_interactions": 25}),
    ("IterativeKCore", {"min_interactions": 9}),
    ("NRoundsKCore", {"rounds": 1, "min_interactions": 12}),
    ("UserHeadN", {"num_interactions": 5}),
    ("UserTailN", {"num_interactions": 5}),
    ("DropUser", {"user_ids_to_filter": [3, 4, 12345]}),
    ("DropItem", {"item_ids_to_filter": 7}),
]


ALONE = [[each] for each in RATED + COUNTED]


@pytest.mark.parametrize("filters", [*ALONE, [COUNTED[1], RATED[1], COUNTED[6]], COUNTED[1::-1]])
def test_filters(frame: real.pl.DataFrame, filters: list[tuple[str, dict[str, Any]]]) -> None:
    """Each alone, then several: every one sees what those before it left."""
    data, want = read(frame), real.nw.from_native(frame)
    for name, parameters in filters:
        data = apply_filter(data, name, **parameters)
        want = apply_filtering(want, [filter_registry.get(name, **parameters)])
    assert rows_of(data) == in_time(want) and 0 < data.n_events < len(frame)


def test_every_filter_of_warprec_is_there() -> None:
    theirs = {name.upper() for name in filter_registry.list_registered()}
    assert {name.upper() for name in FILTERS} == theirs | {"DUPLICATES"}


HOLDOUT = {"strategy": "temporal_holdout", "ratio": 0.1}
LAST = {"strategy": "temporal_leave_k_out", "k": 1}
SPECS: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    (HOLDOUT, None),
    (HOLDOUT, HOLDOUT),
    ({**HOLDOUT, "ratio": 0.3}, {**HOLDOUT, "ratio": 0.5}),
    (LAST, LAST),
    ({**LAST, "k": 2}, None),
    (HOLDOUT, {**LAST, "k": 3}),
    ({"strategy": "timestamp_slicing", "timestamp": "best"}, {"strategy": "timestamp_slicing", "timestamp": "best"}),
    ({"strategy": "timestamp_slicing", "timestamp": 25}, LAST),
    ({"strategy": "random_holdout", "ratio": 0.2}, {"strategy": "random_holdout", "ratio": 0.1, "seed": 7}),
    ({"strategy": "random_leave_k_out", "k": 2, "seed": 5}, {"strategy": "random_leave_k_out", "k": 1}),
    (LAST, {"strategy": "random_holdout", "ratio": 0.2}),
]


@pytest.mark.parametrize(("test", "validation"), SPECS)
def test_splits(frame: real.pl.DataFrame, test: dict[str, Any], validation: dict[str, Any] | None) -> None:
    if test.get("timestamp") == 25 and frame["timestamp"].max() > 1000:
        test = {**test, "timestamp": 885_000_000}
    want = Splitter().split_transaction(
        real.nw.from_native(frame), test=SplitSpec(**test), validation=validation and SplitSpec(**validation)
    )
    split = warprec_split(read(frame), test, validation)
    parts = parts_of(split)
    assert parts[0] == in_time(want[0])
    for part, rows in zip(parts[1:], want[1:], strict=True):  # WarpRec's joins leave held-out ties in any order
        assert sorted(part) == ([] if rows is None else sorted(in_time(rows)))
    assert split.interactions.n_items == len({item for _, item, _ in parts[0]})
    assert sum(map(len, parts)) == split.interactions.n_events and parts[0] and parts[2]


def test_dates_and_seconds(ml_100k: real.pl.DataFrame) -> None:
    """A date, the same in seconds, and data in other units cut alike."""
    data = read(ml_100k)
    seconds = warprec_split(data, {"strategy": "timestamp_slicing", "timestamp": 889_401_600})
    milliseconds = read(ml_100k.with_columns(real.pl.col("timestamp") * 1000))
    dates = read(ml_100k.with_columns(real.pl.from_epoch("timestamp")))
    midnight = 889_401_600
    for times, moment in [(data, "1998-03-09"), (dates, "1998-03-09"), (dates, midnight), (milliseconds, midnight)]:
        split = warprec_split(times, {"strategy": "timestamp_slicing", "timestamp": moment})
        assert (split.train_stop == seconds.train_stop).all() and split.n_train == seconds.n_train
    hour_east = {"strategy": "timestamp_slicing", "timestamp": "1998-03-09T01:00+01:00"}
    assert warprec_split(milliseconds, hour_east).n_train == seconds.n_train


NAMES = {"HitRate": "HR", "nDCG": "NDCG", "MRR": "MRR", "Recall": "Recall", "Precision": "Precision", "F1": "F1"}
NAMES |= {name: name for name in ("MAP", "MAR", "ItemCoverage", "UserCoverage", "NumRetrieved", "Gini")}
NAMES |= {"ShannonEntropy": "ShannonEntropy", "nDCGRendle2020": "NDCG"}


class Table:
    """Scores by user and item, for both sides."""

    name = "Table"

    def __init__(self, n_users: int, n_items: int) -> None:
        self.scores = torch.randn(n_users, n_items + 1, generator=torch.Generator().manual_seed(1))

    def eval(self) -> None:
        pass

    def predict(self, user_indices: Tensor, item_indices: Tensor | None = None, **_: Any) -> Tensor:
        rows = self.scores[user_indices]
        return rows[:, :-1].clone() if item_indices is None else rows.gather(1, item_indices)

    def score(self, users: Tensor, items: Tensor, offsets: Tensor) -> Tensor:
        return self.predict(users)


def theirs(
    model: Any, frame: real.pl.DataFrame, specs: Any, candidates: list[Any] | None, **options: Any
) -> dict[str, float]:
    """WarpRec's metrics of the test part, over its own loader or the given sampled batches."""
    test, validation = (None if spec is None else SplitSpec(**spec) for spec in specs)
    train, _, held = Splitter().split_transaction(real.nw.from_native(frame), test=test, validation=validation)
    labels = {"rating_label": "rating", "timestamp_label": "timestamp"}
    dataset = Dataset(train, held, **labels)
    evaluator = Evaluator(list(NAMES), [1, 5, 10], dataset.train_set.get_sparse(), **options)
    loader = dataset.get_evaluation_dataloader() if candidates is None else candidates
    evaluator.evaluate(model, loader, "full" if candidates is None else "sampled", dataset)
    results = evaluator.compute_results()
    flat = {f"{NAMES[name]}@{k}": value for k, values in results.items() for name, value in values.items()}
    return {name: float(v[~v.isnan()].mean()) if isinstance(v, Tensor) else v for name, v in flat.items()}


@pytest.mark.parametrize("mask_seen", ["pair", "none"])
@pytest.mark.parametrize(("test", "validation"), [(LAST, LAST), ({**HOLDOUT, "ratio": 0.4}, HOLDOUT), SPECS[6]])
def test_full_ranking(test: Any, validation: Any, mask_seen: Any) -> None:
    """Repeats, several targets, cold items and users: every metric is WarpRec's."""
    frame = odd(n_items=90)
    split = warprec_split(read(frame), test, validation)
    model = Table(split.interactions.n_users, split.interactions.n_items)
    mine = evaluate(model, split, ks=(1, 5, 10), mask_seen=mask_seen)
    assert mine.protocol["repeated_targets"] > 0 and sum(split.dropped.values()) > 0
    assert mine.protocol["masked_targets"] == (mine.protocol["repeated_targets"] if mask_seen == "pair" else 0)
    want = theirs(model, frame, (test, validation), None, mask_seen=mask_seen)
    assert {name: mine.metrics[name] for name in want} == pytest.approx(want, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("mask_seen", ["pair", "none"])
def test_sampled_ranking(mask_seen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same candidates, the same metrics; no candidate but a target is seen in training."""
    frame, spec = odd(n_items=90), {**HOLDOUT, "ratio": 0.4}
    split = warprec_split(read(frame), spec)
    data = split.interactions
    batches: list[Any] = []
    draw = evaluation._sampled_candidates

    def recorded(users: Any, *arguments: Any) -> Tensor:
        candidates = draw(users, *arguments)
        most = int(users.n_targets.max())
        padded = torch.where(candidates < 0, data.n_items, candidates)
        batches.append([users.users, padded[:, :most], padded[:, most:]])
        return candidates

    monkeypatch.setattr(evaluation, "_sampled_candidates", recorded)
    model = Table(data.n_users, data.n_items)
    mine = evaluate(model, split, ks=(1, 5, 10), protocol="sampled", n_negatives=12, mask_seen=mask_seen)
    assert mine.protocol["repeated_targets"] > 0 == mine.protocol["masked_targets"]
    want = theirs(model, frame, (spec, None), batches, mask_seen=mask_seen)
    lists = {name for name in want if name.split("@")[0] in LIST_METRICS}
    assert {name: mine.metrics[name] for name in want.keys() - lists} == pytest.approx(
        {name: want[name] for name in want.keys() - lists}, rel=1e-5, abs=1e-6
    )
    # WarpRec's own loader draws from the same items: those that are neither in training nor targets.
    train, _, held = Splitter().split_transaction(real.nw.from_native(frame), test=SplitSpec(**spec))
    dataset = Dataset(train, held, rating_label="rating", timestamp_label="timestamp")
    loader = SampledEvaluationDataset(dataset.train_set.get_sparse(), dataset.eval_set.get_sparse(), 12)
    assert loader.users_with_eval == [user for users, *_ in batches for user in users.tolist()]
    for users, _, negatives in batches:
        for user, drawn in zip(users.tolist(), negatives, strict=True):
            assert not np.isin(drawn[drawn < data.n_items], loader.all_positives[user]).any()


def test_a_models_histories(tmp_path: Path) -> None:
    """SASRec of the same weights, ranked by both: WarpRec's histories are the training parts."""
    frame = odd(n_items=90)
    split = warprec_split(read(frame), LAST, LAST)
    params = real.PARAMS["SASRec"]
    info = {"n_users": split.interactions.n_users, "n_items": split.interactions.n_items}
    model, original = SASRec(params, info), real.originals.SASRec(params, info)
    model.load_state_dict(original.state_dict())
    mine = evaluate(model, split, ks=(1, 5, 10), history="training")
    want = theirs(original, frame, (LAST, LAST), None)
    assert {name: mine.metrics[name] for name in want} == pytest.approx(want, rel=1e-5, abs=1e-6)
