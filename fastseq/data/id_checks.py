"""Ids that look as if a spreadsheet, a float or a careless export had changed them."""

from __future__ import annotations

import re
from bisect import bisect_left

import numpy as np

from .findings import Finding, Severity
from .ids import IdMap, Int64Array
from .times import EXACT

SCIENTIFIC = re.compile(r"-?[0-9](\.[0-9]+)?[eE]\+[0-9]{2,}")  # as spreadsheets and printf write it; 12E4 is a code
FLOAT = re.compile(r"(-?[0-9]+)\.0+")
ZEROS = re.compile(r"0+([0-9]+)")
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"  # of no width, and no blanks for ``str.strip``
ENOUGH = 20  # integers that are rounded by chance: less than one list in a million


def check_ids(ids: IdMap, column: str) -> list[Finding]:
    """What looks damaged among the ids of a column, ``"user"`` or ``"item"``."""
    values = ids.values
    if isinstance(values, list):
        found = [check(values, column) for check in (_scientific, _floats, _blanks, _case, _zeros)]
    else:
        found = [_rounded(values, column)]
    return [finding for finding in found if finding is not None]


def _scientific(values: list[str], column: str) -> Finding | None:
    found = [value for value in values if SCIENTIFIC.fullmatch(value)]
    return _finding(
        column,
        "ids_in_scientific_notation",
        found,
        values,
        f"{len(found):,} {column} ids are numbers in scientific notation",
        "a spreadsheet or a float has cut off their digits: ids that were different are one now",
        "export the column as text; the digits are not in this file any more",
    )


def _floats(values: list[str], column: str) -> Finding | None:
    found = [value for value in values if FLOAT.fullmatch(value)]
    twins = sum(_is_in(values, value.partition(".")[0]) for value in found)
    split = f"one {column} is two, each with a part of the events"
    beside = f", {twins:,} of them beside the same id without it" if twins else ""
    return _finding(
        column,
        "ids_as_floats",
        found,
        values,
        f"{len(found):,} {column} ids end in .0{beside}",
        f"{split if twins else 'they are text: integers do not find them'}; of numbers beyond 2^53 the last digits are "
        "lost",
        "cast the column to integers where the file is written (pandas makes floats of integers where one is missing: "
        "dtype Int64)",
        matters=twins > 0 or any(len(value) > 17 for value in found),
    )


def _blanks(values: list[str], column: str) -> Finding | None:
    found = [value for value in values if value != value.strip() or value != value.strip(INVISIBLE)]
    return _finding(
        column,
        "ids_with_blanks",
        found,
        values,
        f"{len(found):,} {column} ids begin or end with a blank or an invisible character",
        f"reading drops spaces and tabs alone: an id with it is another {column} than the id without it",
        "strip the column where the file is written",
    )


def _case(values: list[str], column: str) -> Finding | None:
    found = _alike(values)
    return _finding(
        column,
        "ids_differ_in_case",
        found,
        values,
        f"{len(found):,} {column} ids are equal to another but for upper and lower case",
        f"where both mean the same, one {column} is two, each with a part of the events",
        "write the column in lower case, unless the ids are codes in which case counts",
        matters=len(found) >= len(values) / 100,
    )


def _zeros(values: list[str], column: str) -> Finding | None:
    plain = ((value, match[1]) for value in values if (match := ZEROS.fullmatch(value)))
    found = [value for value, rest in plain if _is_in(values, rest.lstrip("0") or "0")]
    return _finding(
        column,
        "ids_with_leading_zeros",
        found,
        values,
        f"{len(found):,} {column} ids are equal to another but for zeros in front",
        f"where both mean the same, one {column} is two, each with a part of the events",
        f"reader.dtypes.{column}_id_type: int64 reads 007 as 7; as text write all of them in one width",
    )


def _rounded(values: Int64Array, column: str) -> Finding | None:
    """Integers beyond 2^53 of which each is a float, or has zeros behind 15 digits.

    Ids that end in zero bits or digits by design are no harm done: of rounded ones about half have a one, or nine in
    ten no zero, where the precision ends.
    """
    large = values[(values > EXACT) | (values < -EXACT)]
    exact = np.abs(large[(large > -(2**62)) & (large < 2**62)])  # what has an absolute value, and a float in range
    step = np.spacing(exact.astype(np.float64)).astype(np.int64)
    as_float = (exact % step == 0).all() and (exact // step % 2).mean() > 0.25 if len(exact) else False
    power = 10 ** (np.floor(np.log10(np.maximum(exact, 1).astype(np.float64))).astype(np.int64) - 14)
    in_cells = (exact % power == 0).all() and (exact // power % 10 > 0).mean() > 0.5 if len(exact) else False
    if len(exact) < ENOUGH or not (as_float or in_cells):
        return None
    how = "a spreadsheet, which keeps 15 digits" if in_cells else "a float, which keeps 53 bits"
    return _finding(
        column,
        "ids_rounded",
        large.tolist(),
        values,
        f"all {len(large):,} {column} ids beyond 2^53 have passed through {how}",
        "ids that were different are one now",
        "export the column as text or as integers; the digits are not in this file any more",
    )


def _finding(
    column: str, name: str, found: list[str] | list[int], values: list[str] | Int64Array, what: str, consequence: str,
    remedy: str, *, matters: bool = True,
) -> Finding | None:  # fmt: skip
    if not found:
        return None
    severity: Severity = "warning" if matters else "note"
    examples = tuple({column: value} for value in found[:3])
    share = len(found) / len(values)
    return Finding(f"{column}_{name}", severity, len(found), share, examples, what, consequence, remedy)


def _alike(values: list[str]) -> list[str]:
    """The values that are equal to another but for case, in groups. By hashes first: 24 bytes a value of memory."""
    hashes = np.fromiter((hash(value.casefold()) for value in values), np.int64, len(values))
    order = np.argsort(hashes, kind="stable")
    same = hashes[order[1:]] == hashes[order[:-1]]
    rows = np.zeros(len(values), np.bool_)
    rows[order[1:][same]] = rows[order[:-1][same]] = True
    groups: dict[str, list[str]] = {}
    for row in np.flatnonzero(rows).tolist():
        groups.setdefault(values[row].casefold(), []).append(values[row])
    return [value for group in groups.values() if len(group) > 1 for value in group]


def _is_in(values: list[str], value: str) -> bool:
    """Whether a sorted list has the value."""
    at = bisect_left(values, value)
    return at < len(values) and values[at] == value
