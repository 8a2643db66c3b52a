"""Files, data frames and lists to ``Interactions``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from fastseq.errors import DataError, nearest

from . import frames
from .ids import RawId
from .interactions import Interactions, build_interactions, tape_from_codes
from .text import read_text, split_record

FORMATS = {
    "csv": "separated values with a header (or `columns`)",
    "tsv": "the same, separated by tabs",
    "inter": "RecBole's atomic file: tabs, header of `name:type`",
    "parquet": "Parquet",
    "pairs": "`user item` per line, no header; lines in time order",
    "sequences": "one user per line, item ids in time order; users are line numbers from 1",
}
EXTENSIONS = {".csv": "csv", ".tsv": "tsv", ".inter": "inter", ".parquet": "parquet", ".pq": "parquet"}
SEPARATORS = (",", "\t", ";", "|")
LONGEST_HEADER = 1 << 20


def read_interactions(
    source: Any,
    *,
    format: str | None = None,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str | None = "timestamp",
    separator: str | None = None,
    columns: Sequence[str] | None = None,
) -> Interactions:
    """Reads interactions: sorted by user, then time; equal timestamps keep the order of the source.

    Ids in text are integers where every one of the column is (as Python prints it: ``7``, not ``07``), and strings
    otherwise; they never pass through a float. Spaces around a field do not count. Timestamps are integers, floats or
    datetimes (``YYYY-MM-DD[ HH:MM[:SS]]``, kept as microseconds since 1970 UTC). Other columns are not read.

    Args:
        source: a path, a polars or pandas data frame, or what ``from_sequences`` takes.
        format: a key of ``FORMATS``; None: by the file's extension, or for other extensions by its first lines.
        user, item: the columns that hold the ids.
        timestamp: the column of times, or None where the order of the source is the order in time.
        separator: between the fields of "csv" and "tsv", one or more characters; None: a comma (for "csv", whichever of
            ``, ; | tab`` separates the named columns of the header), a tab for "tsv".
        columns: names of the columns of a "csv" or "tsv" file that has no header.

    Raises:
        DataError: if the source cannot be read as that, naming file, line and column.
        OSError: if the file cannot be opened.
        ImportError: if ``source`` is a file and polars is not installed.
    """
    names = {"user": user, "item": item} | ({} if timestamp is None else {"timestamp": timestamp})
    if len(set(names.values())) < len(names):
        raise DataError(f"user, item and timestamp must be different columns: {names}")
    if not isinstance(source, str | os.PathLike):
        if format is not None:
            raise DataError(f"format={format!r} is for files, and the source is a {type(source).__name__}")
        if frames.is_frame(source):
            return _from_frame(source, names)
        return from_sequences(source)
    path = Path(source)
    try:
        return _read_file(path, format, names, separator, columns)
    except DataError as error:
        raise DataError(f"{path}{', ' if str(error).startswith(('line ', 'row ')) else ': '}{error}") from None


def from_sequences(sequences: Iterable[Iterable[RawId]] | Mapping[RawId, Iterable[RawId]]) -> Interactions:
    """Histories in memory, oldest event first.

    Args:
        sequences: a list of lists of item ids, whose users are 0, 1, …; or a mapping from user id to such a list.
            A user with an empty list is left out.

    Raises:
        DataError: if ids are mixed or missing, or no user has two events.
    """
    pairs = sequences.items() if isinstance(sequences, Mapping) else None
    if pairs is None:
        if isinstance(sequences, str | bytes) or not isinstance(sequences, Iterable):
            raise DataError(
                f"expected a path, a data frame, lists of item ids or a mapping, got {type(sequences).__name__}"
            )
        pairs = enumerate(sequences)  # type: ignore[assignment]
    users: list[Any] = []
    items: list[Any] = []
    for name, history in pairs:  # type: ignore[union-attr]
        if isinstance(history, str | bytes) or not isinstance(history, Iterable):
            raise DataError(f"user {name!r}: expected a list of item ids, got {history!r}")
        before = len(items)
        items.extend(history)
        users.extend([name] * (len(items) - before))
    return build_interactions(users, items)


def _read_file(
    path: Path, format: str | None, names: dict[str, str], separator: str | None, columns: Sequence[str] | None
) -> Interactions:
    format = format or EXTENSIONS.get(path.suffix.lower()) or _guess(path, names)
    if format not in FORMATS:
        raise DataError(f"unknown format {format!r}; {_choices()}")
    if format not in ("csv", "tsv") and (separator is not None or columns is not None):
        raise DataError(f"separator and columns are for formats 'csv' and 'tsv', not {format!r}")
    if format == "parquet":
        return _from_frame(frames.read_parquet(path, list(names.values())), names)
    with open(path, "rb") as file:
        if format in ("sequences", "pairs"):
            return _from_text(file, None, ["user", "item"] if format == "pairs" else [], [0, 1], 1)
        line, header = (1, "") if columns is not None else _header(file)
        separator = separator or ("\t" if format in ("tsv", "inter") else _separator(header, names))
        if "\n" in separator or '"' in separator:
            raise DataError(f"separator {separator!r} contains a newline or a quote")
        present = list(columns) if columns is not None else _split(header, separator)
        if format == "inter":
            present = [name.split(":")[0] for name in present]
        elif columns is None:
            _check_separator(header, separator, present, names)
        return _from_text(
            file, separator, present, [_position(present, name, role) for role, name in names.items()], line
        )


def _from_text(
    file: IO[bytes], separator: str | None, present: list[str], columns: list[int], line: int
) -> Interactions:
    """The rest of the file, as ``read_text`` takes it."""
    if file.tell() == 0 and file.read(3) != b"\xef\xbb\xbf":
        file.seek(0)
    users, items, times = read_text(file, separator, present, columns, line)
    if not len(users[1]):
        raise DataError(
            "no events: the file is empty" if file.tell() == 0 else "no events: nothing but a header or blank lines"
        )
    return tape_from_codes(*users, *items, times)


def _from_frame(frame: Any, names: dict[str, str]) -> Interactions:
    present = [str(name) for name in frame.columns]
    for role, name in names.items():
        _position(present, name, role)
    if not len(frame):
        raise DataError("no events: the data frame has no rows")
    user_ids, user_codes = frames.ids(frame[names["user"]], names["user"])
    item_ids, item_codes = frames.ids(frame[names["item"]], names["item"])
    times = frames.times(frame[names["timestamp"]], names["timestamp"]) if "timestamp" in names else None
    return tape_from_codes(user_ids, user_codes, item_ids, item_codes, times)


def _header(file: IO[bytes]) -> tuple[int, str]:
    """The first line that is not blank, and the number of the line after it."""
    number = 1
    while raw := file.readline(LONGEST_HEADER):
        number += 1
        try:
            text = raw.decode("utf-8-sig" if number == 2 else "utf-8").strip("\r\n")
        except UnicodeDecodeError:
            raise DataError(f"line {number - 1}: the header is not UTF-8 text") from None
        if "\0" in text or (not raw.endswith(b"\n") and len(raw) == LONGEST_HEADER):
            raise DataError(f"line {number - 1}: the header is not text")
        if text.strip():
            return number, text
    raise DataError("no events: the file is empty")


def _split(header: str, separator: str) -> list[str]:
    if (fields := split_record(header.encode() + b"\n", separator)) is None:
        raise DataError(f"the header cannot be split at {separator!r} (a quote is never closed)")
    return [field.decode() for field in fields]


def _separator(header: str, names: dict[str, str]) -> str:
    """The separator whose columns include user and item; a comma where none does."""
    for candidate in SEPARATORS:
        if {names["user"], names["item"]} <= set(_split(header, candidate)):
            return candidate
    return ","


def _check_separator(header: str, separator: str, present: list[str], names: dict[str, str]) -> None:
    """Names the separator that would give the columns, or that is likely where this one splits nothing."""
    missing = [name for name in names.values() if name not in present]
    others = [other for other in (*SEPARATORS, "::", " ") if other != separator and other in header]
    wanted = {name.encode() for name in names.values()}
    right = [other for other in others if wanted <= set(split_record(header.encode() + b"\n", other) or [])]
    if missing and (right or (others and len(present) == 1)):
        raise DataError(
            f"split at {separator!r}, the header has no column {missing[0]!r}; is it separated by "
            f"{(right or others)[0]!r}? Set separator= (in a configuration: reader.sep)"
        )


def _position(present: list[str], name: str, role: str) -> int:
    if present.count(name) == 1:
        return present.index(name)
    if name in present:
        raise DataError(f"column {name!r} occurs {present.count(name)} times in the header")
    near = nearest(name, present)
    hint = "" if near is None else f"; did you mean {near!r}?"
    label = {"user": "user_id_label", "item": "item_id_label", "timestamp": "timestamp_label"}[role]
    remedy = f"name the column with {role}=… (in a configuration: reader.labels.{label})" + (
        ", or pass timestamp=None (null) to keep the order given" if role == "timestamp" else ""
    )
    raise DataError(f"no column {name!r}{hint} (columns: {', '.join(map(repr, present[:20]))}): {remedy}")


def _guess(path: Path, names: dict[str, str]) -> str:
    """The format of a file without a telling extension, from its first lines."""
    with open(path, "rb") as file:
        start = file.read(1 << 16)
    if start.startswith(b"PAR1"):
        return "parquet"
    lines = [line for line in start.decode("utf-8-sig", "replace").splitlines() if line.strip()]
    if len(start) == 1 << 16 and len(lines) > 1:
        lines.pop()  # cut off in its middle
    if not lines:
        raise DataError("no events: the file is empty")
    if ":token" in lines[0] and "\t" in lines[0]:
        return "inter"
    if {names["user"], names["item"]} <= set(_split(lines[0], _separator(lines[0], names))):
        return "csv"
    counts = {len(line.split()) for line in lines}
    if not any(mark in line for line in lines for mark in ",;|\0\ufffd"):
        if counts == {2}:
            return "pairs"
        if len(counts) > 1 and not any("\t" in line for line in lines):
            return "sequences"
    raise DataError(f"the format is not clear from the extension {path.suffix!r} or the first lines; {_choices()}")


def _choices() -> str:
    return "pass format= one of " + "; ".join(f"{name!r}: {what}" for name, what in FORMATS.items())
