"""Ids and histories as a user types them, or writes them into a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..errors import DataError


def _as_id(ids: Any, text: str) -> Any:
    """A word of the command line as the catalogue's kind of id; still text where it is none, so that errors name it."""
    text = text.strip()
    if ids is None or ids.kind == "int":
        try:
            return int(text)
        except ValueError:
            return text
    return text


def as_ids(ids: Any, words: list[str], where: str, skip_unknown: bool) -> list[Any]:
    """The words of a history, unknown ones refused by where they stand."""
    values = [_as_id(ids, text) for text in words]
    if ids is not None and not skip_unknown:
        for number, index in enumerate(ids.encode(values, unknown="-1"), start=1):
            if index < 0:
                raise DataError(
                    f"{where}: item {number}, {words[number - 1].strip()!r}, is not in the catalogue; --skip-unknown "
                    "leaves such items out"
                )
    return values


def among(ids: Any, values: Any) -> list[Any]:
    """The values that are ids of the map, in their order; all of them without a map."""
    if ids is None:
        return list(values)
    return [value for value, index in zip(values, ids.encode(values, unknown="-1"), strict=True) if index >= 0]


def raw(ids: Any, text: str, what: str) -> Any:
    value = _as_id(ids, text)
    if ids.encode([value], unknown="-1")[0] < 0:
        raise DataError(
            f"{what} {text!r} is not in the data of this run; --history and --input take the items of anyone"
        )
    return value


def lines_of(path: Path) -> list[str]:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--input {path}: cannot be read: {error}") from error
    return text.removeprefix("\ufeff").splitlines()  # the mark of some editors
