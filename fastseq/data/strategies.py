"""WarpRec's splitting strategies, event for event."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastseq.errors import DataError, check_integer

from .ids import Int64Array
from .interactions import Interactions
from .split import GONE, TEST, TRAINING, VALIDATION, Split, split_by_parts
from .times import microseconds

# The parameter of each strategy.
STRATEGIES = {
    "temporal_holdout": "ratio",
    "temporal_leave_k_out": "k",
    "timestamp_slicing": "timestamp",
    "random_holdout": "ratio",
    "random_leave_k_out": "k",
}
UNITS = {10**11: 1, 10**14: 10**3, 10**17: 10**6}  # timestamps below this, and how many make a second; 10⁹ beyond


def warprec_split(
    interactions: Interactions,
    test: Mapping[str, Any],
    validation: Mapping[str, Any] | None = None,
    cold: Literal["drop", "keep"] = "drop",
) -> Split:
    """Splits as WarpRec 2.2.8 does, event for event: first the test part, then validation from what remains.

    Args:
        interactions: what to split. The ``random_*`` need its ``order`` (``read_interactions(keep_order=True)``).
        test: ``strategy`` and its parameter: ``temporal_holdout`` or ``random_holdout`` with ``ratio``;
            ``temporal_leave_k_out`` or ``random_leave_k_out`` with ``k``, where users of at most k events leave the
            data; ``timestamp_slicing`` with ``timestamp``: a number in the unit of the timestamps or in seconds, a
            date, ISO 8601 text or ``"best"``. ``seed`` (42) is that of the ``random_*``.
        validation: the same, or None.
        cold: held-out events whose user or item has no training event: "drop" (``Split.warm``), as WarpRec, or "keep".

    Raises:
        DataError: if the data lacks what a strategy needs, or no user keeps two events.
        ValueError: if a strategy or its parameter is unknown or out of range.
    """
    parts = np.full(interactions.n_events, TRAINING, np.int8)
    specs = {"test": dict(test)} | ({} if validation is None else {"validation": dict(validation)})
    for name, spec in specs.items():
        left = np.flatnonzero(parts == TRAINING)
        parts[left] = _parts(interactions, left, name, spec)
    in_time = not any(str(spec["strategy"]).startswith("random") for spec in specs.values())
    split = split_by_parts(interactions, parts, "warprec", specs | {"cold": cold}, in_time)
    if split.interactions.n_users < interactions.n_users:
        split = replace(split, dropped={"short_users": interactions.n_users - split.interactions.n_users})
    return split.warm() if cold == "drop" else split


def _parts(data: Interactions, left: Int64Array, name: str, spec: dict[str, Any]) -> NDArray[np.int8]:
    """TRAINING, GONE or the part called ``name``, of each event at the tape rows ``left`` [m], increasing."""
    strategy = spec.get("strategy")
    if strategy not in STRATEGIES:
        raise ValueError(f"{name}: strategy is {strategy!r}, expected one of {', '.join(STRATEGIES)}")
    key = STRATEGIES[strategy]
    if unknown := spec.keys() - {"strategy", key, "seed"}:
        raise ValueError(f"{name}: {strategy} takes {key!r}, not {', '.join(map(repr, sorted(unknown)))}")
    value: Any = spec.get(key)
    if key == "ratio":
        spec[key] = float(value) if isinstance(value, Real) and not isinstance(value, bool) else 0.0
        if not 0.0 < spec[key] < 1.0:
            raise ValueError(f"{name}: ratio is {value!r}, expected 0 < ratio < 1")
        value = spec[key]
    if key == "k":
        spec[key] = value = check_integer(f"{name}: k", value, 1)
    users = data.event_users[left]
    lengths = np.bincount(users, minlength=data.n_users)
    n, position = lengths[users], np.arange(len(left)) - (lengths.cumsum() - lengths)[users]
    gone = np.zeros(len(left), bool)
    if strategy == "temporal_holdout":
        held = (position >= np.floor(n * (1 - value))) & (position > 0)
    elif strategy == "timestamp_slicing":
        if data.timestamps is None:
            raise DataError(f"{name}: timestamp_slicing needs timestamps and this data has none")
        times = data.timestamps[left]
        spec[key] = _moment(times, users, value)
        held = times >= spec[key]
    else:
        if strategy.endswith("leave_k_out"):
            gone = n <= value
        if strategy == "temporal_leave_k_out":
            held = position >= n - value
        else:
            if data.order is None:
                raise DataError(
                    f"{name}: {strategy} draws by the order of the source, which this data has not kept; read it with "
                    "keep_order=True"
                )
            rows = np.flatnonzero(~gone)
            draws = np.empty(len(left))
            in_order = rows[np.argsort(data.order[left[rows]])]
            draws[in_order] = np.random.RandomState(spec.get("seed", 42)).rand(len(rows))
            held = np.zeros(len(left), bool)
            if key == "ratio":
                held[in_order[np.argsort(draws[in_order], kind="stable")][int(len(rows) * (1 - value)) :]] = True
            else:
                by_draw = rows[np.lexsort((draws[rows], users[rows]))]
                first = np.searchsorted(users[by_draw], users[by_draw])
                held[by_draw[np.arange(len(rows)) - first < value]] = True
    return np.select([gone, held], [GONE, {"test": TEST, "validation": VALIDATION}[name]], TRAINING)


def _moment(times: NDArray[Any], users: Int64Array, value: Any) -> int | float:
    """The first moment held out, in the unit of ``times``."""
    if value == "best":  # most users have events on both sides; the last such moment
        starts = np.flatnonzero(np.diff(users, prepend=-1))
        first, last = np.minimum.reduceat(times, starts), np.maximum.reduceat(times, starts)
        moments = np.unique(times)
        both = np.searchsorted(np.sort(first), moments) - np.searchsorted(np.sort(last), moments)
        return moments[both == both.max()][-1].item()
    low, high = times.min(), times.max()
    if isinstance(value, str):
        value = _from_text(value)
    # In which unit the times are shows by where the moment falls, and else by their size.
    usual = next((unit for limit, unit in UNITS.items() if abs(times).max() < limit), 10**9)
    units = (usual, 1, 10**3, 10**6, 10**9)
    if isinstance(value, date):
        micro = microseconds(value)
        exact = [divmod(micro * unit, 10**6) for unit in units]
        in_units = [whole + rest / 10**6 if rest else whole for whole, rest in exact]
        return next((moment for moment in in_units if low <= moment <= high), in_units[0])
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"timestamp is {value!r}, expected a number, a date or 'best'")
    number = int(value) if isinstance(value, Integral) else float(value)
    return number if low <= number <= high or not low <= number * usual <= high else number * usual


def _from_text(text: str) -> int | float | datetime:
    for kind in (int, float, datetime.fromisoformat):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ValueError(f"timestamp is {text!r}, expected a number, an ISO 8601 date or 'best'")
