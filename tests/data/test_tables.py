"""Tables in files: every format reads back as it was, and a file is whole or not there."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import polars as pl
import pytest

from fastseq.data.tables import WRITERS, check_target, write_frames
from fastseq.errors import ConfigError, DataError

TYPES = {"user": pl.String, "item": pl.Int64, "score": pl.Float32}
BLOCKS = [
    pl.DataFrame({"user": ['a, "b"', "c\td", " é"], "item": [2**63 - 1, -1, 0], "score": [0.1, -1e-9, 3e30]}, TYPES),
    pl.DataFrame(schema=TYPES),
    pl.DataFrame({"user": ["line\nline", "007"], "item": [5, 6], "score": [0.0, 1 / 3]}, TYPES),
]
READERS = {
    ".csv": lambda path: pl.read_csv(path, schema=TYPES),
    ".tsv": lambda path: pl.read_csv(path, schema=TYPES, separator="\t"),
    ".parquet": pl.read_parquet,
    ".jsonl": lambda path: pl.read_ndjson(path, schema=TYPES),
}


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("extension", WRITERS)
def test_reads_back_as_it_was(extension: str, empty: bool, tmp_path: Path) -> None:
    blocks = BLOCKS[1:2] if empty else BLOCKS
    path = tmp_path / f"table{extension.upper() if empty else extension}"
    write_frames(path, iter(blocks))
    if empty and extension == ".jsonl":
        assert path.read_bytes() == b""
    else:
        read = READERS[extension](path)
        assert read.equals(pl.concat(blocks)) and read.schema == TYPES
    assert list(tmp_path.iterdir()) == [path]


def _broken(error: BaseException) -> Iterator[pl.DataFrame]:
    yield BLOCKS[0]
    raise error


@pytest.mark.parametrize("extension", WRITERS)
def test_keeps_no_block_that_is_written(extension: str, tmp_path: Path) -> None:
    made: list[weakref.ref[pl.DataFrame]] = []

    def blocks() -> Iterator[pl.DataFrame]:
        for _ in range(6):
            block = BLOCKS[0].clone()
            made.append(weakref.ref(block))
            yield block
            del block
            assert sum(each() is not None for each in made) <= 1

    write_frames(tmp_path / f"table{extension}", blocks())
    assert len(made) == 6


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("a history"), OSError("a disk")], ids=repr)
@pytest.mark.parametrize("extension", WRITERS)
def test_an_error_leaves_what_was_there(extension: str, error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / f"table{extension}"
    for before in (None, b"as it was"):
        if before is not None:
            path.write_bytes(before)
        with pytest.raises((KeyboardInterrupt, DataError), match=r"^$|a history|table.*cannot be written .a disk"):
            write_frames(path, _broken(error), overwrite=True)
        assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    full = mock.patch("fastseq.data.tables.os.fsync", side_effect=OSError(28, "No space left on device"))
    with full, pytest.raises(DataError, match=r"t\.csv: cannot be written \(No space left on device\)"):
        write_frames(tmp_path / "t.csv", iter(BLOCKS))
    assert not list(tmp_path.iterdir())


def test_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'\.xlsx' names no format.*\.csv, \.tsv, \.parquet, \.jsonl"):
        check_target(tmp_path / "t.xlsx")
    with pytest.raises(DataError, match="there is no folder"):
        check_target(tmp_path / "nowhere" / "t.csv")
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(ConfigError, match="--overwrite"):
        check_target(tmp_path / "t.csv")
    assert check_target(tmp_path / "t.csv", overwrite=True) == tmp_path / "t.csv"
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        check_target(tmp_path / "folder.csv", overwrite=True)


def test_a_file_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"

    def blocks() -> Iterator[pl.DataFrame]:
        yield BLOCKS[0]
        path.write_text("another's")

    with pytest.raises(ConfigError, match="exists"):
        write_frames(path, blocks())
    assert path.read_text() == "another's" and list(tmp_path.iterdir()) == [path]


def test_without_polars_the_extra_is_named(tmp_path: Path) -> None:
    with mock.patch.dict("sys.modules", {"polars": None}), pytest.raises(ImportError, match=r"fastseq-rec\[data\]"):
        check_target(tmp_path / "t.csv")
