"""Columns of polars and pandas data frames, without importing either before it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseq.errors import DataError

from .ids import BLANKS, MISSING, IdMap, factorise, missing_id, stripped
from .times import as_times


def is_frame(source: object) -> bool:
    """Whether ``source`` is a polars or pandas data frame."""
    return type(source).__name__ == "DataFrame" and _library(source) in ("polars", "pandas")


def is_table(source: object) -> bool:
    """Whether ``source`` is what ``as_frame`` takes."""
    name, library = type(source).__name__, _library(source)
    return (
        is_frame(source)
        or (library == "polars" and name == "LazyFrame")
        or (library == "pyarrow" and name in ("Table", "RecordBatch"))
    )


def as_frame(table: Any, columns: list[Any]) -> Any:
    """A polars or pandas frame; of a polars LazyFrame or an Arrow table no more than the columns named."""
    if is_frame(table):
        return table
    pl = import_polars("reading Arrow tables")
    lazy = type(table).__name__ == "LazyFrame"
    try:
        present = table.collect_schema().names() if lazy else table.schema.names
        if (odd := next((name for name in columns if present.count(name) != 1), None)) is not None:
            if odd in present:
                raise DataError(f"column {odd!r} occurs {present.count(odd)} times")
            return pl.DataFrame(schema=present)
        table = table.select(columns)
        return table.collect() if lazy else pl.from_arrow(table)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"polars cannot collect the LazyFrame ({str(error).splitlines()[0][:200]})") from None


def index_names(frame: Any) -> list[Any]:
    """Names of the index of a pandas frame, as ``set_index`` leaves them; polars has no index."""
    return list(frame.index.names) if _library(frame) == "pandas" else []


def keyed(source: Any) -> Iterator[tuple[Any, Any]] | None:
    """Pairs of key and value of a mapping, or of a pandas Series (or its groups) with an index of its own; else None.

    An index 0, 1, … that pandas made (a RangeIndex) is none: such a Series is a list.
    """
    if isinstance(source, Mapping):
        return iter(source.items())
    if type(source).__name__ == "SeriesGroupBy":
        return iter(source)
    if type(source).__name__ != "Series" or not hasattr(source, "index") or _library(source) == "polars":
        return None
    index = source.index
    made = type(index).__name__ == "RangeIndex" and index.start == 0 and index.step == 1
    return None if made else zip(index.tolist(), source.tolist(), strict=True)


def as_list(values: Any) -> list[Any] | None:
    """An ordered collection (list, array, tensor, Series, generator, …) as a list; None where ``values`` is none."""
    if isinstance(values, str | bytes | Mapping | set | frozenset) or not isinstance(values, Iterable):
        return None
    if is_frame(values):
        return None
    method = next((getattr(values, m) for m in ("to_pylist", "tolist", "to_list") if hasattr(values, m)), None)
    listed = list(values) if method is None else method()
    return listed if isinstance(listed, list) else None


def import_polars(purpose: str) -> Any:
    """The module polars, which only files and frames need.

    Raises:
        ImportError: naming the extra that brings it.
    """
    try:
        import polars
    except ImportError:
        raise ImportError(
            f"{purpose} needs polars: pip install 'fastseq-rec[cli]' (or 'fastseq-rec[data]', polars alone)"
        ) from None
    return polars


def read_parquet(path: Path, columns: list[str]) -> Any:
    """The named columns of a Parquet file as a polars frame; where one is missing, all columns and no rows.

    Raises:
        DataError: if the file is not Parquet.
        ImportError: if polars is not installed.
    """
    pl = import_polars("reading Parquet")
    problems = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)
    with open(path, "rb"):  # a missing file or permission is its own error, not a fault of the data
        pass
    try:
        present = pl.read_parquet_schema(path)
        if any(name not in present for name in columns):
            return pl.DataFrame(schema=present)
        frame = pl.read_parquet(path, columns=columns)
        if len({len(frame[name]) for name in columns}) > 1:
            raise ValueError("its columns differ in length")
        return frame
    except problems as error:
        raise DataError(f"not a Parquet file that polars can read ({str(error).splitlines()[0][:200]})") from None


def ids(series: Any, name: str) -> tuple[IdMap, NDArray[np.int32]]:
    """A column of ids as ``factorise`` gives it.

    Raises:
        DataError: naming row and column of a missing id, or the column whose type holds no ids.
    """
    _refuse_missing(series, name, "id")
    if _library(series) == "pandas":
        if series.dtype.kind in "iu":
            return factorise(series.to_numpy(np.uint64 if series.dtype.kind == "u" else np.int64), name)
        if series.dtype.kind in "fbcmM":
            raise _not_ids(series, name)
        return factorise(stripped(series.astype(object).tolist(), name), name)
    import polars as pl

    if series.dtype.is_integer():
        return factorise(_integers(series, name), name)
    if series.dtype in (pl.String, pl.Categorical, pl.Enum):
        texts = series.cast(pl.String).str.strip_chars(BLANKS)
        if (bad := texts.is_in(MISSING)).any():
            row = int(bad.arg_max())
            raise DataError(f"row {row + 1}, column {name!r}: {missing_id(texts[row])}")
        distinct = texts.unique().sort()
        codes = texts.cast(pl.Enum(distinct)).to_physical().to_numpy().astype(np.int32)
        return IdMap.from_sorted(distinct.to_list()), codes
    if series.dtype == pl.Object:
        return factorise(stripped(series.to_list(), name), name)
    raise _not_ids(series, name)


def times(series: Any, name: str) -> NDArray[Any]:
    """A column of times as ``as_times`` gives it.

    Raises:
        DataError: naming row and column of a time that is missing or none.
    """
    _refuse_missing(series, name, "timestamp")
    if _library(series) == "pandas":
        kind = series.dtype.kind
        if kind == "M":
            zoned = getattr(series.dt, "tz", None) is not None
            return as_times((series.dt.tz_convert("UTC").dt.tz_localize(None) if zoned else series).to_numpy(), name)
        if kind in "iuf":
            return as_times(series.to_numpy({"i": np.int64, "u": np.uint64, "f": np.float64}[kind]), name)
        return as_times(series.astype(object).tolist(), name)
    import polars as pl

    if series.dtype.is_temporal() and series.dtype in (pl.Date, pl.Datetime):
        return series.cast(pl.Datetime("us")).to_physical().to_numpy()
    if series.dtype.is_integer():
        return as_times(_integers(series, name), name)
    if series.dtype.is_float():
        return as_times(series.to_numpy(), name)
    return as_times(series.to_list(), name)


def _integers(series: Any, name: str) -> NDArray[Any]:
    """A polars column of integers; NumPy has none of 128 bits."""
    if "128" not in str(series.dtype):
        return series.to_numpy()
    import polars as pl

    narrow = series.cast(pl.Int64, strict=False)
    if narrow.null_count():
        row = int(narrow.is_null().arg_max())
        raise DataError(f"row {row + 1}, column {name!r}: {series[row]} does not fit a 64-bit signed integer")
    return narrow.to_numpy()


def _library(thing: object) -> str:
    return type(thing).__module__.split(".")[0]


def _refuse_missing(series: Any, name: str, what: str) -> None:
    missing = np.asarray(series.isna() if _library(series) == "pandas" else series.is_null())
    if missing.any():
        row = int(np.argmax(missing))
        raise DataError(f"row {row + 1}, column {name!r}: the {what} is missing; drop the row or fill it")


def _not_ids(series: Any, name: str) -> DataError:
    remedy = (
        f"frame.explode({name!r}) gives each a row"
        if str(series.dtype).startswith(("List", "Array"))
        else "cast it to one of them"
    )
    return DataError(f"column {name!r} is {series.dtype}: ids are integers or strings, {remedy}")
