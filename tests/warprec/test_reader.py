"""The same files and keys of section ``reader`` give WarpRec's own reader and ours the same events."""

from __future__ import annotations

from . import real  # skips where WarpRec is not installed

# isort: split
from pathlib import Path
from typing import Any

import pytest
from warprec.data.reader import LocalReader
from warprec.utils.config.reader_configuration import ReaderConfig

from fastseq.cli import experiment
from fastseq.cli.configuration import parse_config
from fastseq.data import Interactions

MODEL = {"embedding_size": 4, "hidden_size": 4, "num_layers": 1, "dropout_prob": 0.1, "learning_rate": 0.01}
MODELS = {"GRU4Rec": MODEL | {"weight_decay": 0, "epochs": 1, "neg_samples": 1}}
WARPREC = {"data_type": "transaction", "reading_method": "local", "rating_type": "explicit"}
COLUMNS = ["user_id", "item_id", "rating", "timestamp"]


def theirs(frame: Any) -> list[tuple[Any, ...]]:
    return sorted(frame.select("user_id", "item_id", "timestamp").to_native().rows())


def ours(data: Interactions) -> list[tuple[Any, ...]]:
    users, items = data.user_ids.decode(data.event_users), data.item_ids.decode(data.items)
    assert data.timestamps is not None
    return sorted(zip(users, items, data.timestamps.tolist(), strict=True))


@pytest.fixture
def frame(shared_data: Path) -> real.pl.DataFrame:
    frame = real.pl.read_csv(shared_data / "ml-100k.inter", separator="\t", new_columns=COLUMNS)
    return frame.with_columns(real.pl.col("rating", "timestamp").cast(real.pl.Int64))


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("types", [{}, {"user_id_type": "str", "item_id_type": "int64"}])
def test_a_data_set(tmp_path: Path, frame: real.pl.DataFrame, header: bool, types: dict[str, str]) -> None:
    """With a header and, as MovieLens' u.data is, without."""
    frame.write_csv(tmp_path / "u.data", separator="\t", include_header=header)
    section = {"loading_strategy": "dataset", "local_path": str(tmp_path / "u.data"), "header": header, "dtypes": types}
    config = ReaderConfig(**section, **WARPREC)
    read = LocalReader().read_tabular(
        config.local_path, config.column_names(), config.column_dtype(), config.sep, config.header
    )
    data = experiment.read(parse_config({"reader": {**section, **WARPREC, "file_format": "tabular"}, "models": MODELS}))
    assert ours(data) == theirs(read)


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("file_format", ["tabular", "parquet"])
def test_a_split(tmp_path: Path, frame: real.pl.DataFrame, file_format: str, validation: bool) -> None:
    """Train, validation and test files: each part holds the same events."""
    frame = frame.sort("timestamp", maintain_order=True)
    parts = {"train": frame[:80_000], "validation": frame[80_000:90_000], "test": frame[90_000:]}
    for name, part in parts.items():
        if name != "validation" or validation:
            if file_format == "parquet":
                part.write_parquet(tmp_path / f"{name}.parquet")
            else:
                part.write_csv(tmp_path / f"{name}.tsv", separator="\t")
    section = {"loading_strategy": "split", "split": {"local_path": str(tmp_path), "file_format": file_format}}
    config = ReaderConfig(**section, **WARPREC)
    reader, given = LocalReader(), config.split
    if file_format == "parquet":
        read = reader.read_parquet_split(given.local_path, config.column_names(), given.ext)
    else:
        read = reader.read_tabular_split(
            given.local_path, config.column_names(), config.column_dtype(), given.sep, given.ext, given.header
        )
    tree = {"reader": {**section, **WARPREC}, "splitter": {"cold": "keep"}, "models": MODELS}
    settings = parse_config(tree)
    _, split = experiment.read_and_split(settings)
    data = split.interactions
    edges = [data.offsets[:-1], split.train_stop, split.validation_stop, data.offsets[1:]]
    users, items = data.user_ids.decode(data.event_users), data.item_ids.decode(data.items)
    assert data.timestamps is not None
    rows = list(zip(users, items, data.timestamps.tolist(), strict=True))
    for number, part in enumerate(read):
        mine = [row for a, b in zip(edges[number], edges[number + 1], strict=True) for row in rows[a:b]]
        assert sorted(mine) == ([] if part is None else theirs(part))
