"""Timestamps of whatever kind to one numeric array."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseq.errors import DataError

from .ids import is_int64, is_missing

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def as_times(values: Sequence[Any] | NDArray[Any], name: str = "timestamp") -> NDArray[Any]:
    """Timestamps as an array that sorts in time: int64 or float64 [n].

    Args:
        values: [n] integers or floats, kept as they are; or datetimes (``datetime``, ``date``, datetime64, ISO 8601
            strings), which become int64 microseconds since 1970-01-01 UTC. Datetimes without a zone are taken as UTC.
        name: the column, for error messages.

    Raises:
        DataError: naming row (from 1) and column of the first that is missing, infinite, no time, or of another kind.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "Mfiu":
        return _from_array(values, name)
    listed = list(values)
    datetimes = bool(listed) and isinstance(listed[0], date | str | np.datetime64)
    numbers = [_number(value, datetimes, row, name) for row, value in enumerate(listed)]
    return np.array(numbers, np.int64 if all(isinstance(number, int) for number in numbers) else np.float64)


def microseconds(moment: date) -> int:
    """Microseconds since 1970-01-01 UTC; without a zone, ``moment`` is in UTC."""
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _from_array(values: NDArray[Any], name: str) -> NDArray[Any]:
    kind = values.dtype.kind
    bad = np.isnat(values) if kind == "M" else ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"row {row + 1}, column {name!r}: {_missing(values[row])}")
    if kind == "M":
        return values.astype("datetime64[us]").astype(np.int64)
    if kind == "f" or (values.dtype == np.uint64 and len(values) and values.max() > np.iinfo(np.int64).max):
        return np.ascontiguousarray(values, np.float64)
    return np.ascontiguousarray(values, np.int64)


def _number(value: Any, datetimes: bool, row: int, name: str) -> int | float:
    """One timestamp as a number; ``datetimes``: what the column's first one is."""
    where = f"row {row + 1}, column {name!r}"
    if is_missing(value) or (isinstance(value, str) and not value):
        raise DataError(f"{where}: {_missing(value)}")
    number: int | float | None = None
    if datetimes and isinstance(value, str):
        try:
            number = microseconds(datetime.fromisoformat(value.strip()))
        except ValueError:
            raise DataError(f"{where}: {value!r} is not a datetime (YYYY-MM-DD[ HH:MM[:SS]])") from None
    elif datetimes and isinstance(value, np.datetime64):
        number = int(value.astype("datetime64[us]").astype(np.int64))
    elif datetimes and isinstance(value, date):
        number = microseconds(value)
    elif not datetimes and is_int64(value):
        number = int(value)
    elif not datetimes and isinstance(value, float | np.floating) and np.isfinite(value):
        number = float(value)
    if number is None:
        want = "a datetime as those before it" if datetimes else "a timestamp (an integer, a float or a datetime)"
        raise DataError(f"{where}: {value!r} is not {want}")
    return number


def _missing(value: object) -> str:
    return f"the timestamp is missing ({value}); drop the row or fill it"
