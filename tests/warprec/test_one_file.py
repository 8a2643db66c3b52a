"""One configuration file for WarpRec's pipelines and for ``fastseq train``: both read, filter and split alike."""

from __future__ import annotations

from . import real  # skips where WarpRec is not installed

# isort: split

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from warprec.common.initialize import initialize_datasets
from warprec.data import Dataset
from warprec.data.reader import LocalReader
from warprec.utils.callback import WarpRecCallback
from warprec.utils.config.config import load_train_configuration

from fastseq.cli import experiment
from fastseq.cli.configuration import load_config
from fastseq.data import Split

COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
Rows = list[tuple[Any, ...]]


def held_out(name: str, **parameters: Any) -> dict[str, Any]:
    return {"strategy": name, **parameters}


TENTH, ONE = held_out("temporal_holdout", ratio=0.1), held_out("temporal_leave_k_out", k=1)
RANDOM = held_out("random_holdout", ratio=0.1)
TEXT = {"dtypes": {"user_id_type": "str", "item_id_type": "str"}}
UNNAMED = {"header": False, "sep": "\t"}
NAMED = {"labels": {f"{role}_label": f"the {role}" for role in COLUMNS}}
CORE = {"MinRating": {"min_rating": 4}, "IterativeKCore": {"min_interactions": 10}}
USERS = {"UserMin": {"min_interactions": 50}, "MinRating": {"min_rating": 4}}
POPULAR = {"ItemMin": {"min_interactions": 20}, "UserMin": {"min_interactions": 20}, "ItemAverage": {}}
RECENT = {"UserTailN": {"num_interactions": 40}, "NRoundsKCore": {"rounds": 2, "min_interactions": 8}}
ACTIVE = {
    "UserMax": {"max_interactions": 200},
    "ItemMax": {"max_interactions": 300},
    "UserHeadN": {"num_interactions": 60},
}
LIKED = {"UserAverage": {}, "DropUser": {"user_ids_to_filter": [1, 2]}, "DropItem": {"item_ids_to_filter": 50}}
BEST = held_out("timestamp_slicing", timestamp="best")
# What WarpRec's examples and guides combine: (reader, filtering, test_splitting, validation_splitting).
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any] | None]] = {
    "holdout": ({}, {}, TENTH, None),
    "text ids, holdout twice": (TEXT, {}, TENTH, TENTH),
    "other labels, a fifth": (NAMED, {}, held_out("temporal_holdout", ratio=0.2), None),
    "no header, random": (UNNAMED, {}, RANDOM, None),
    "random of text ids": (TEXT, {}, RANDOM, held_out("random_holdout", ratio=0.2, seed=7)),
    "core": ({}, CORE, TENTH, TENTH),
    "core reversed": ({}, dict(reversed(CORE.items())), TENTH, None),
    "users, then ratings": ({}, USERS, ONE, ONE),
    "ratings, then users": ({}, dict(reversed(USERS.items())), ONE, ONE),
    "items, then users": (NAMED, POPULAR, held_out("temporal_leave_k_out", k=3), ONE),
    "users, then items": (TEXT, dict(reversed(POPULAR.items())), held_out("temporal_leave_k_out", k=3), TENTH),
    "tails": ({}, RECENT, held_out("timestamp_slicing", timestamp=889_401_600), ONE),
    "heads": ({}, ACTIVE, BEST, BEST),
    "without some": ({}, LIKED, held_out("random_leave_k_out", k=1, seed=42), None),
    "random one, filtered": (
        TEXT,
        CORE,
        held_out("random_leave_k_out", k=2),
        held_out("random_leave_k_out", k=1, seed=3),
    ),
}


def configuration(path: Path, reader: dict[str, Any], filtering: Any, test: Any, validation: Any) -> dict[str, Any]:
    model = {**real.PARAMS["SASRec"], "optimization": {"strategy": "grid", "properties": {"mode": "max", "seed": 42}}}
    splitter = {"test_splitting": test} | ({} if validation is None else {"validation_splitting": validation})
    return {
        "reader": {
            "loading_strategy": "dataset",
            "data_type": "transaction",
            "reading_method": "local",
            "local_path": str(path),
            "rating_type": "implicit",
            "sep": ",",
            **reader,
        },
        "writer": {"dataset_name": "MovieLens", "writing_method": "local", "local_experiment_path": str(path.parent)},
        **({"filtering": filtering} if filtering else {}),
        "splitter": splitter,
        "models": {"SASRec": model},
        "evaluation": {"top_k": [10], "metrics": ["nDCG", "Recall"], "validation_metric": "nDCG@10"},
    }


def rows_of(frame: Any, by: list[str]) -> Rows:
    return sorted(map(tuple, frame.select(by).to_native().rows()))


def parts_of(split: Split) -> list[Rows]:
    """Training, validation and test events."""
    data = split.interactions
    users, items, place = (
        data.user_ids.decode(data.event_users),
        data.item_ids.decode(data.items),
        np.arange(data.n_events),
    )
    part = (place >= split.train_stop[data.event_users]).astype(int) + (
        place >= split.validation_stop[data.event_users]
    )
    assert data.timestamps is not None
    rows = list(zip(users, items, data.timestamps.tolist(), strict=True))
    return [sorted(row for row, where in zip(rows, part, strict=True) if where == number) for number in range(3)]


def targets_of(split: Split, name: Any) -> set[tuple[Any, Any]]:
    """(user, item) of everything that is ranked."""
    data, part = split.interactions, split.part(name, "training")
    users, items = data.user_ids.decode(part.users), data.item_ids.decode(data.items)
    spans = zip(users, part.target_start.tolist(), part.target_stop.tolist(), strict=True)
    return {(user, item) for user, start, stop in spans for item in items[start:stop]}


def theirs_of(dataset: Dataset) -> set[tuple[Any, Any]]:
    """The same of WarpRec's matrix of relevant items."""
    users, items = ({code: key for key, code in ids.items()} for ids in dataset.get_mappings())
    relevant = dataset.eval_set.get_sparse().tocoo()
    return {(users[u], items[i]) for u, i in zip(relevant.row, relevant.col, strict=True)}


@pytest.mark.parametrize("case", CASES)
def test_the_same_users_items_events_and_targets(case: str, shared_data: Path, tmp_path: Path) -> None:
    reader, *rest = CASES[case]
    labels = list(reader["labels"].values()) if "labels" in reader else COLUMNS
    frame = real.pl.read_csv(shared_data / "ml-100k.inter", separator="\t", new_columns=labels)
    whole = frame.with_columns(real.pl.col(labels[2:]).cast(real.pl.Int64))
    whole.write_csv(tmp_path / "data.csv", separator=reader.get("sep", ","), include_header=reader.get("header", True))
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(configuration(tmp_path / "data.csv", reader, *rest), sort_keys=False))

    main, validation, _ = initialize_datasets(LocalReader(), WarpRecCallback(), load_train_configuration(str(path)))
    config = load_config(path)
    _, split = experiment.read_and_split(config)

    by, (training, *held) = [labels[0], labels[1], labels[3]], parts_of(split)
    users, items = main.get_mappings()
    assert set(split.interactions.user_ids.decode(np.arange(split.interactions.n_users))) == set(users)
    assert set(split.interactions.item_ids.decode(np.arange(split.interactions.n_items))) == set(items)
    assert training == rows_of(main.train_set.get_df(), by)
    for name, dataset, events in (("validation", validation, held[0]), ("test", main, held[1])):
        if dataset is None:
            assert name == "validation" and not events
            continue
        assert events == rows_of(dataset.eval_set.get_df(), by)
        assert targets_of(split, name) == theirs_of(dataset)
    # In the order from which the models learn, ties in time included.
    histories, lengths = main.train_session.get_user_history_sequences(list(users.values()), 10_000)
    names = {code: item for item, code in items.items()}
    theirs = {
        user: [names[i] for i in row[:n].tolist()] for user, row, n in zip(users, histories, lengths, strict=True)
    }
    data = split.interactions
    known, names_here = data.user_ids.decode(np.arange(data.n_users)), np.array(data.item_ids.decode(data.items))
    spans = zip(known, data.offsets[:-1], split.train_stop, strict=True)
    assert {user: names_here[start:stop].tolist() for user, start, stop in spans} == theirs


def test_a_given_split(shared_data: Path, tmp_path: Path) -> None:
    """Three files; held-out events of users and items without a training event are left out on both sides."""
    frame = real.pl.read_csv(shared_data / "ml-100k.inter", separator="\t", new_columns=COLUMNS)
    frame = frame.with_columns(real.pl.col(COLUMNS[2:]).cast(real.pl.Int64)).sort("timestamp", maintain_order=True)
    for name, part in {"train": frame[:60_000], "validation": frame[60_000:80_000], "test": frame[80_000:]}.items():
        part.write_csv(tmp_path / f"{name}.csv")
    given = {"loading_strategy": "split", "split": {"local_path": str(tmp_path), "ext": ".csv", "sep": ","}}
    tree = configuration(tmp_path, given, None, TENTH, None)
    del tree["reader"]["local_path"], tree["splitter"]
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(tree))
    main, validation, _ = initialize_datasets(LocalReader(), WarpRecCallback(), load_train_configuration(str(path)))
    config = load_config(path)
    _, split = experiment.read_and_split(config)
    by = ["user_id", "item_id", "timestamp"]
    want = [main.train_set, validation.eval_set, main.eval_set]
    assert parts_of(split) == [rows_of(part.get_df(), by) for part in want]
    assert targets_of(split, "test") == theirs_of(main) and targets_of(split, "validation") == theirs_of(validation)
    assert split.interactions.n_items == len(main.get_mappings()[1])
