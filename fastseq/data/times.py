"""Timestamps of whatever kind to one numeric array."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseq.errors import DataError

from .ids import is_int64, is_missing

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EXACT = 2**53  # up to here every integer is a float
BLOCK = 1 << 20  # times that are looked at together
UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
# From 1979 to 2128, in each unit: stretches of numbers that do not meet.
UNIT_BOUNDS = np.array([bound * 1000.0**unit for unit in range(4) for bound in (3e8, 5e9)])


def looks_like_times(values: Sequence[Any]) -> bool:
    """Whether all are numbers that say a time since 1979 in one of ``UNITS``."""
    if not values or not all(isinstance(value, int | float) for value in values):
        return False
    return bool((np.searchsorted(UNIT_BOUNDS, np.asarray(values, np.float64)) % 2 == 1).all())


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
    fractions = np.flatnonzero([isinstance(number, float) for number in numbers])
    wide = np.flatnonzero([isinstance(number, int) and abs(number) > EXACT for number in numbers])
    if len(fractions) and len(wide):
        row = int(max(fractions[0], wide[0]))
        raise DataError(f"row {row + 1}, column {name!r}: {rounded(numbers[row])}")
    return _checked(np.array(numbers, np.float64 if len(fractions) else np.int64), name, datetimes)


def rounded(value: object) -> str:
    """What to say of the time with which a column has both floats and integers that no float can hold."""
    return (
        f"with {value} the column has floats and integers beyond 2^53, which as floats would lose their order; "
        "write all times as integers"
    )


def doubt(times: NDArray[Any], unit: int | None = None) -> tuple[int | None, tuple[int, str] | None]:
    """Whether the order of numbers may not be that in time: two units in one column, or floats beyond 2^53.

    Args:
        times: int64 or float64 [n].
        unit: index in ``UNITS`` of what earlier times of the column are in, if that is known.

    Returns:
        The unit, and row and words of the first doubtful time, or None.
    """
    if not len(times):
        return unit, None
    ends = np.searchsorted(UNIT_BOUNDS, (times.min(), times.max()))
    places = np.searchsorted(UNIT_BOUNDS, times if ends[0] != ends[1] else times[:1])  # odd: inside of a unit
    units, inside = places // 2, places % 2 == 1
    if inside.any():
        unit = int(units[np.argmax(inside)]) if unit is None else unit
        others = inside & (units != unit)
        # Numbers between two units say that this is another scale, such as nanoseconds since a start.
        between = ~inside & (places > 2 * units[inside].min()) & (places <= 2 * units[inside].max())
        if others.any() and not between.any():
            row = int(np.argmax(others))
            return unit, (
                row,
                f"{times[row]} looks like {UNITS[units[row]]} since 1970, the times before it like {UNITS[unit]}: the "
                "order in time is wrong unless all are in one unit; convert the column first",
            )
    if times.dtype == np.float64 and (beyond := np.abs(times) > EXACT).any():
        row = int(np.argmax(beyond))
        return unit, (
            row,
            f"{times[row]} is a float beyond 2^53: times closer than its last digit lose their order; write or cast "
            "the column as integers",
        )
    return unit, None


def units_in(times: NDArray[Any]) -> dict[str, int]:
    """How many times, int64 or float64 [n], look like seconds, milliseconds, … since 1970; empty where they are of
    another scale, or in one unit at most. As ``doubt`` sees it."""
    if not len(times) or np.ptp(np.searchsorted(UNIT_BOUNDS, (times.min(), times.max()))) == 0:
        return {}
    counts = np.zeros(len(UNIT_BOUNDS) + 1, np.int64)
    for start in range(0, len(times), BLOCK):
        counts += np.bincount(np.searchsorted(UNIT_BOUNDS, times[start : start + BLOCK]), minlength=len(counts))
    inside = np.flatnonzero(counts[1::2])
    between = counts[2 * inside.min() + 2 : 2 * inside.max() + 1 : 2].any() if len(inside) > 1 else True
    return {} if between else {UNITS[unit]: int(counts[2 * unit + 1]) for unit in inside}


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
        return _checked(np.ascontiguousarray(values, np.float64), name)
    return _checked(np.ascontiguousarray(values, np.int64), name)


def _checked(times: NDArray[Any], name: str, datetimes: bool = False) -> NDArray[Any]:
    """The same times, with a warning where their order may not be that in time."""
    _, problem = (None, None) if datetimes else doubt(times)
    if problem is not None:
        warnings.warn(f"row {problem[0] + 1}, column {name!r}: {problem[1]}", stacklevel=2)
    return times


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
