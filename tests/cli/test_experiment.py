"""From a configuration's words to what is trained: splits, filters, options, devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fastseq.cli import experiment
from fastseq.cli.configuration import Config, load_config, parse_config
from fastseq.data.baselines import Popularity
from fastseq.data.filters import apply_filter
from fastseq.data.readers import from_sequences, read_interactions
from fastseq.data.strategies import warprec_split
from fastseq.errors import ConfigError, DataError
from fastseq.training import TrainingOptions, evaluate

from .test_commands import MODELS, write_data

COLUMNS = {"user": "user", "item": "item", "timestamp": "time"}
LABELS = {"user_id_label": "user", "item_id_label": "item", "timestamp_label": "time"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "data.csv"
    write_data(path)
    return path


def config(path: Path, model: dict[str, Any] | None = None, **sections: Any) -> Config:
    reader = {"local_path": str(path), "labels": LABELS}
    return parse_config({"reader": reader, "models": {"GRU4Rec": {**MODELS["GRU4Rec"], **(model or {})}}, **sections})


def splitter(strategy: str, key: str, test: float, validation: float | None = None) -> dict[str, Any]:
    """The section of one strategy for the test part and, if there is one, the validation part."""
    parts = {"test": test, "validation": validation}
    return {f"{part}_splitting": None if x is None else {"strategy": strategy, key: x} for part, x in parts.items()}


LAST = {"strategy": "temporal_leave_k_out", "k": 1, "seed": 42}
SLICES = {"strategy": "timestamp_slicing", "timestamp": 1009, "seed": 42}


@pytest.mark.parametrize(
    ("section", "test", "validation"),
    [
        (None, LAST, LAST),
        ({"test_splitting": {}}, LAST, None),
        (splitter("temporal_leave_k_out", "k", 3), {**LAST, "k": 3}, None),
        (splitter("timestamp_slicing", "timestamp", 1009, 1005), SLICES, {**SLICES, "timestamp": 1005}),
        ({"test_splitting": SLICES, "validation_splitting": LAST}, SLICES, LAST),
    ],
)
def test_splits_are_those_of_the_function(path: Path, section: Any, test: Any, validation: Any) -> None:
    data = read_interactions(path, **COLUMNS)
    sections = {} if section is None else {"splitter": section}
    (_, split), expected = experiment.read_and_split(config(path, **sections)), warprec_split(data, test, validation)
    assert split.describe() == expected.describe() and split.n_train < data.n_events
    assert (split.train_stop == expected.train_stop).all() and (split.validation_stop == expected.validation_stop).all()


def test_random_splits_keep_the_order_of_the_file(path: Path) -> None:
    section = splitter("random_holdout", "ratio", 0.25, 0.25)
    settings = config(path, splitter=section)
    data, split = experiment.read_and_split(settings)
    assert sorted(data.order) == list(range(data.n_events)) and split.part("test").n_targets > 0


def test_a_split_that_leaves_nothing_is_named(path: Path) -> None:
    late = splitter("timestamp_slicing", "timestamp", 5000)
    with pytest.raises(ConfigError, match="leaves no test events"):
        experiment.read_and_split(config(path, splitter=late))
    with pytest.raises(ConfigError, match="expected a number, an ISO 8601 date or 'best'"):
        experiment.read_and_split(config(path, splitter={"test_splitting": {**SLICES, "timestamp": "tomorrow"}}))


def test_what_the_scores_do_not_show_is_said() -> None:
    """User 0's target stands in its training part, user 1's item has no training event, user 2 is too short."""
    data = from_sequences([[0, 1, 2, 0], [0, 1, 2, 9], [1], [2, 0, 1, 2]])
    last = {"strategy": "temporal_leave_k_out", "k": 1}
    for cold, word in (("drop", "1 test targets are left out"), ("keep", "1 of 3 test targets are items without")):
        split = warprec_split(data, last, cold=cold)
        lines = experiment.notes(evaluate(Popularity(split), split, coverage=False))
        assert "1 users are too short" in lines[0] and word in lines[1]
        assert "2 of" in lines[2] and "can never be ranked" in lines[2] and len(lines) == 3


def test_filters_are_applied_in_the_written_order(path: Path) -> None:
    limits = {"ItemMin": {"min_interactions": 25}, "usermin": {"min_interactions": 5}}
    limits["UserTailN"] = {"num_interactions": 6}
    hashes = set()
    for names in (("ItemMin", "usermin", "UserTailN"), ("UserTailN", "usermin", "ItemMin")):
        settings = config(path, filtering={name: limits[name] for name in names})
        again = load_config(settings.resolved(settings.models[0], settings.models[0].params))
        expected = read_interactions(path, **COLUMNS)
        for name in names:
            expected = apply_filter(expected, name, **limits[name])
        filtered = experiment.read(again)
        assert filtered.data_hash == expected.data_hash and filtered.filters == expected.filters
        hashes.add(filtered.data_hash)
    assert len(hashes) == 2


def test_every_option_reaches_the_trainer(path: Path) -> None:
    model = {
        "optimization": {
            "properties": {"seed": 7},
            "lr_scheduler": {"name": "cosine", "params": {"warmup_steps": 9}},
            "precision": "bf16-mixed",
            "gradient_clip": 0.5,
            "eval_every_n": 3,
        },
        "early_stopping": {"patience": 4, "min_delta": 0.01, "grace_period": 2},
    }
    custom = config(
        path,
        model,
        evaluation={"validation_metric": "HR@5", "validation_users": 9, "batch_size": 31, "mask_seen": "none"}
        | {"strategy": "sampled", "num_negatives": 7, "seed": 3, "history": "training"},
    )
    assert experiment.options_of(custom, custom.models[0]) == TrainingOptions(
        seed=7,
        precision="bf16",
        clip_norm=0.5,
        schedule="cosine",
        warmup_steps=9,
        validation_metric="HR@5",
        validate_every=3,
        patience=4,
        min_delta=0.01,
        grace_period=2,
        validation_users=9,
        evaluation_batch_size=31,
        protocol="sampled",
        n_negatives=7,
        evaluation_seed=3,
        mask_seen="none",
        history="training",
    )
    assert custom.models[0].params.keys() == MODELS["GRU4Rec"].keys()
    plain = config(path, splitter={"validation_splitting": None})
    assert experiment.options_of(plain, plain.models[0]) == TrainingOptions(validation_metric=None)
    built = experiment.build_model(custom.models[0], read_interactions(path, **COLUMNS))
    assert built.seed == 7 and built.catalogue is not None and not np.isnan(built.learning_rate)


def test_devices(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = config(path, {"optimization": {"device": "cpu"}}, general={"device": "cuda"})
    assert experiment.device_of(own, own.models[0]) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    auto, wrong = config(path), config(path, {"optimization": {"device": "gpu"}})
    assert experiment.device_of(auto, auto.models[0]) == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"models\.GRU4Rec\.optimization\.device is 'gpu'"):
        experiment.device_of(wrong, wrong.models[0])
    everywhere = config(path, general={"device": "cuda"})
    with pytest.raises(ConfigError, match=r"general\.device is 'cuda', but PyTorch sees no GPU"):
        experiment.device_of(everywhere, everywhere.models[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert experiment.device_of(auto, auto.models[0]) == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert experiment.device_of(auto, auto.models[0]) == torch.device("cuda", 3) and current == [torch.device("cuda:3")]
    assert experiment.device_of(own, own.models[0]) == torch.device("cpu")


def read_as(reader: dict[str, Any]) -> Config:
    return parse_config({"reader": reader, "models": {"GRU4Rec": MODELS["GRU4Rec"]}})


def test_files_without_a_header(tmp_path: Path) -> None:
    """As WarpRec orders the columns, or by number: MovieLens' u.data and ratings.dat as they are."""
    rows = [(7, 20, 5, 3), (7, 10, 4, 1), (9, 10, 1, 2)]
    for name, separator in (("u.data", "\t"), ("ratings.dat", "::")):
        (tmp_path / name).write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))
        data = experiment.read(read_as({"local_path": str(tmp_path / name), "header": False}))
        assert data.history(7) == [10, 20] and data.item_ids.kind == "int"
    reader: dict[str, Any] = {"local_path": str(tmp_path / "u.data"), "header": False}
    labels = {"user_id_label": 1, "item_id_label": 0, "timestamp_label": None}
    data = experiment.read(read_as({**reader, "labels": labels, "dtypes": {"item_id_type": "str"}}))
    assert data.history(10) == ["7", "9"]
    with pytest.raises(DataError, match="timestamp is column 4, and the first line has columns 0 to 3"):
        experiment.read(read_as({**reader, "labels": {"timestamp_label": 4}}))
    with pytest.raises(ConfigError, match=r"reader\.dtypes\.item_id_type"):
        read_as({**reader, "dtypes": {"item_id_type": "float32"}})


def test_data_that_is_split_already(tmp_path: Path) -> None:
    """WarpRec's three files; what does not apply to them is refused by name."""
    texts = {
        "train": "1\t10\t5\t1\n1\t11\t5\t2\n2\t12\t5\t1\n2\t13\t5\t1\n",
        "validation": "1\t12\t5\t3\n",
        "test": "1\t13\t5\t4\n",
    }
    for part, text in texts.items():
        (tmp_path / f"{part}.tsv").write_text("user_id\titem_id\trating\ttimestamp\n" + text)
    reader = {"loading_strategy": "split", "split": {"local_path": str(tmp_path)}}
    config = read_as(reader)
    data, split = experiment.read_and_split(config)
    assert data.history(1) == [10, 11, 12, 13] and split.interactions.data_hash == data.data_hash
    assert split.train_stop.tolist() == [2, 6] and split.validation_stop.tolist() == [3, 6]
    assert config.dataset_name == tmp_path.name
    splitter = {"test_splitting": {"strategy": "random_holdout", "ratio": 0.5}, "cold": "keep"}
    both = parse_config({"reader": reader, "splitter": splitter, "models": MODELS})
    assert both.unused == ["splitter.test_splitting"]
    assert experiment.read_and_split(both)[1].validation_stop.tolist() == [3, 6]
    again = parse_config(yaml.safe_load(both.resolved(both.models[0], MODELS["GRU4Rec"])))
    assert again.splitter.cold == "keep" and not again.unused
    (tmp_path / "validation.tsv").unlink()
    assert not len(experiment.read_and_split(config)[1].part("validation"))
    (tmp_path / "1").mkdir()
    with pytest.raises(ConfigError, match="holds folds and no validation"):
        experiment.read(config)
    with pytest.raises(ConfigError, match=r"test\.parquet does not exist|train\.parquet does not exist"):
        experiment.read(read_as({**reader, "split": {"local_path": str(tmp_path / "2"), "file_format": "parquet"}}))
    with pytest.raises(ConfigError, match=r"split needs the key split\.local_path"):
        read_as({"loading_strategy": "split"})
    filtered = parse_config({"reader": reader, "filtering": {"UserMin": {"min_interactions": 2}}, "models": MODELS})
    with pytest.raises(ConfigError, match="filtering does not apply"):
        experiment.read(filtered)


def test_precisions_by_lightnings_names_and_ours(path: Path) -> None:
    names = {"32-true": "fp32", "bf16-mixed": "bf16", "fp32": "fp32", "tf32": "tf32", "bf16": "bf16"}
    for name, expected in names.items():
        read = config(path, {"optimization": {"precision": name}})
        assert experiment.options_of(read, read.models[0]).precision == expected
