"""Data frames and Parquet give the same tape as text; bad or damaged ones are a DataError."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from fastseq.data.readers import read_interactions
from fastseq.errors import DataError

from .test_readers import ROWS, WANT, parquet, same, write


def test_lazy_frames_and_arrow_tables() -> None:
    columns = dict(zip(("user_id", "item_id", "timestamp"), map(list, zip(*ROWS, strict=True)), strict=True))
    frame = pl.DataFrame({"rating": [1.0] * len(ROWS), **columns})
    pytest.importorskip("pyarrow")
    for source in (frame.lazy(), frame.to_arrow(), frame.to_arrow().to_batches()[0]):
        assert same(read_interactions(source), WANT)
        with pytest.raises(DataError, match="no column 'user'; did you mean 'user_id'"):
            read_interactions(source, user="user")
    with pytest.raises(DataError, match="polars cannot collect the LazyFrame"):
        read_interactions(frame.lazy().with_columns(pl.col("rating").cast(pl.String).cast(pl.Date).alias("timestamp")))


def test_parquet_and_frames(tmp_path: Path) -> None:
    columns = dict(zip(("user_id", "item_id", "timestamp"), map(list, zip(*ROWS, strict=True)), strict=True))
    frame = pl.DataFrame({"rating": [1.0] * len(ROWS), **columns})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_parquet(tmp_path / "b")
    for source in (tmp_path / "a.parquet", str(tmp_path / "b"), frame, pd.DataFrame(columns)):
        assert same(read_interactions(source), WANT)
    nullable = pd.DataFrame(columns).convert_dtypes()
    assert nullable.dtypes["user_id"] == "Int64" and same(read_interactions(nullable), WANT)
    small = frame.with_columns(pl.col("item_id").cast(pl.UInt8), pl.col("timestamp").cast(pl.Int32))
    assert same(read_interactions(small), WANT)


def test_integers_of_128_bits() -> None:
    columns = dict(zip(("user_id", "item_id", "timestamp"), map(list, zip(*ROWS, strict=True)), strict=True))
    frame = pl.DataFrame(columns).cast(pl.Int128)
    assert same(read_interactions(frame), WANT)
    for name in columns:
        with pytest.raises(DataError, match=f"row 1, column '{name}': {2**70} does not fit a 64-bit"):
            read_interactions(frame.with_columns(pl.lit(2**70).cast(pl.Int128).alias(name)))


@pytest.mark.parametrize("library", ["polars", "pandas"])
@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user_id", [1, None], "row 2, column 'user_id': the id is missing"),
        ("item_id", ["a", None], "row 2, column 'item_id': the id is missing"),
        ("item_id", [1.5, 2.5], "column 'item_id' is .*float64.*: ids are integers or strings"),
        ("item_id", ["a", 1], "row 2, column 'item_id': 1 is an integer, the ids before it are strings"),
        ("item_id", [True, False], "column 'item_id'"),
        ("timestamp", [1.5, float("nan")], "row 2, column 'timestamp': the timestamp is missing"),
        ("timestamp", ["2020-01-01", "soon"], "row 2, column 'timestamp': 'soon' is not a datetime"),
        ("timestamp", [1, None], "row 2, column 'timestamp': the timestamp is missing"),
    ],
)
def test_bad_frames(library: str, column: str, values: list[Any], message: str) -> None:
    columns: dict[str, Any] = {"user_id": [1, 1], "item_id": [1, 2], "timestamp": [1, 2]}
    mixed = len({type(value) for value in values} - {type(None)}) > 1
    columns[column] = pl.Series(values, dtype=pl.Object) if mixed and library == "polars" else values
    frame = pl.DataFrame(columns) if library == "polars" else pd.DataFrame(columns)
    with pytest.raises(DataError, match=f"(?i){message}"):
        read_interactions(frame)


def test_empty_frame() -> None:
    with pytest.raises(DataError, match="no column 'user_id'"):
        read_interactions(pl.DataFrame())
    with pytest.raises(DataError, match="no rows"):
        read_interactions(pd.DataFrame({"user_id": [], "item_id": [], "timestamp": []}))


def test_parquet_missing_column(tmp_path: Path) -> None:
    pl.DataFrame({"user": [1], "item_id": [1], "timestamp": [1]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: no column 'user_id'; did you mean 'user'\?"):
        read_interactions(tmp_path / "a.parquet")


@pytest.mark.parametrize("keep", [0, 3, 4, 60, 200, -1, -4, -8, -9, -40])
def test_parquet_cut_short(tmp_path: Path, keep: int) -> None:
    """Fixed places: on some damages inside the metadata polars ends the process, whatever catches its errors."""
    path = write(tmp_path, "damaged.parquet", parquet()[:keep])
    with pytest.raises(DataError, match=r"damaged\.parquet"):
        read_interactions(path, timestamp=None)


# A process of its own: one damage in ten thousand makes polars end the process, which no Python code can catch.
DAMAGES = """
import io, random, sys
from pathlib import Path
import polars as pl
from fastseq.data.readers import read_interactions
from fastseq.errors import DataError
from tests import run_python

path, draw, buffer = Path(sys.argv[1]), random.Random(100), io.BytesIO()
pl.DataFrame({"user_id": [1, 1, 2], "item_id": ["a", "b", "c"]}).write_parquet(buffer)
good = buffer.getvalue()
for _ in range(400):
    offset, junk = draw.randrange(len(good)), draw.randbytes(draw.randint(1, 8))
    path.write_bytes(good[:offset] + junk + good[offset + len(junk) :])
    try:
        assert read_interactions(path, timestamp=None).n_events >= 2
    except DataError as error:
        assert str(error).startswith(str(path)), error
"""


def test_damaged_parquet(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DAMAGES, str(write(tmp_path, "damaged.parquet", parquet()))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == -signal.SIGABRT:
        pytest.skip(f"polars {pl.__version__} ended the process on one of these files")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("offset", [0, -4])
def test_parquet_without_its_mark(tmp_path: Path, offset: int) -> None:
    damaged = bytearray(parquet())
    damaged[offset] ^= 0xFF
    path = write(tmp_path, "damaged.parquet", bytes(damaged))
    try:
        assert read_interactions(path, timestamp=None).n_events == 3  # the mark at the end is the one that counts
    except DataError as error:
        assert str(error).startswith(str(path))


def test_arrow_arrays_are_histories() -> None:
    pa = pytest.importorskip("pyarrow")
    assert read_interactions(pa.chunked_array([[[1, 2], [2, 3]]])).items.tolist() == [0, 1, 1, 2]
