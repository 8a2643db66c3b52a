"""Files, data frames and lists to ``Interactions``."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastseq.errors import DataError, nearest

from . import frames
from .files import files_of, unpacked
from .ids import IdMap, RawId, brief, stripped
from .interactions import Interactions, build_interactions, tape_from_codes
from .split import TEST, TRAINING, VALIDATION, Split, split_by_parts
from .text import read_text, split_record
from .times import EXACT, UNITS, doubt, looks_like_times, rounded

# User ids and each event's user, item ids and each event's item (int32 codes), times or None, ratings or None.
Columns: TypeAlias = tuple[IdMap, NDArray[np.int32], IdMap, NDArray[np.int32], NDArray[Any] | None, NDArray[Any] | None]

FORMATS = {
    "csv": "separated values with a header (or `columns`)",
    "tsv": "the same, separated by tabs",
    "inter": "RecBole's atomic file: tabs, header of `name:type`",
    "parquet": "Parquet",
    "pairs": "`user item` per line, no header; lines in time order",
    "sequences": "one user per line, item ids in time order and nothing else; users are line numbers from 1",
    "user_sequences": "one user per line: the user's id, then item ids in time order",
}
EXTENSIONS = {".csv": "csv", ".tsv": "tsv", ".inter": "inter", ".parquet": "parquet", ".pq": "parquet"}
SEPARATORS = (",", "\t", ";", "|")
_DATA = re.compile(r"[0-9.:,;|\s-]+")  # a first line, or a field of it, that names no column
LONGEST_HEADER = 1 << 20


def read_interactions(
    source: Any,
    *,
    format: str | None = None,
    user: str | int = "user_id",
    item: str | int = "item_id",
    timestamp: str | int | None = "timestamp",
    separator: str | None = None,
    columns: Sequence[str] | None = None,
    header: bool = True,
    id_types: Mapping[str, str] | None = None,
    rating: str | int | None = None,
    keep_order: bool = False,
) -> Interactions:
    """Reads interactions: sorted by user, then time; equal timestamps keep the order of the source.

    Ids in text are integers where every one of the column is (as Python prints it: ``7``, not ``07``), and strings
    otherwise; they never pass through a float. Blanks around an id do not count. Timestamps are integers, floats or
    datetimes (``YYYY-MM-DD[ HH:MM[:SS]]``, kept as microseconds since 1970 UTC). Other columns are not read.

    Args:
        source: a path, a folder of files, or paths of several files, read in this order; a file may be packed (gz, bz2,
            xz, zst, a zip of one file). Or a polars or pandas data frame, a polars LazyFrame, a pyarrow Table, or what
            ``from_sequences`` takes.
        format: a key of ``FORMATS``; None: by the file's extension, or for other extensions by its first lines.
        user, item: the columns that hold the ids; where there is no header their numbers, from 0.
        timestamp: the column of times, or None where the order of the source is the order in time.
        separator: between the fields of "csv" and "tsv", one or more characters; None: a tab for "tsv", for "csv"
            whichever of ``, tab ; |`` (without a header also ``::`` and a space) gives the columns.
        columns: names of the columns of a "csv" or "tsv" file that has no header.
        header: False for a "csv" or "tsv" file without a header, whose columns have numbers.
        id_types: "int" or "str" for "user" and "item", in place of what the ids look like: ``007`` is 7 as "int", and
            ``7`` is a string as "str".
        rating: the column of ratings, numbers, which some filters need; None: not read. A second pass reads it.
        keep_order: keep each event's place in the source, by which the splits ``random_*`` draw.

    Raises:
        DataError: if the source cannot be read as that, naming file, line and column.
        OSError: if the file cannot be opened.
        ImportError: if ``source`` is a file and polars is not installed.
    """
    paths = _paths(source)
    if paths is None and not frames.is_table(source):
        if format is not None:
            raise DataError(f"format={format!r} is for files, and the source is a {type(source).__name__}")
        if rating is not None or keep_order:
            raise DataError("rating and keep_order are for files and data frames")
        if hasattr(source, "read") or (isinstance(source, Mapping) and {user, item} <= source.keys()):
            what = "that is open" if hasattr(source, "read") else "of columns"
            raise DataError(
                f"the source is a {type(source).__name__} {what}: "
                "pass the path of a file, or a data frame (polars.DataFrame(columns), polars.read_csv(file))"
            )
        return from_sequences(source)
    layout = _Layout(user, item, timestamp, format, separator, columns, header, id_types or {}, rating)
    columns_read = _read([source] if paths is None else paths, layout)
    try:
        return tape_from_codes(*columns_read, keep_order)
    except DataError as error:
        raise error if paths is None else DataError(f"{source}: {error}") from None


def read_histories(source: Any, **arguments: Any) -> Interactions:
    """Histories to recommend for, an event a row: as ``read_interactions``, but one event of a user is enough.

    Args:
        source: a file, a folder, files or a data frame (histories in lists need no reading).
        arguments: ``user``, ``item``, ``timestamp`` and the others of ``read_interactions``; with ``timestamp=None``
            the order of the source is the order in time.

    Raises:
        DataError, OSError, ImportError: as ``read_interactions``.
    """
    paths = _paths(source)
    if paths is None and not frames.is_table(source):
        raise DataError(
            f"the source is a {type(source).__name__}, expected a file or a data frame; recommendations and recommend "
            "take lists as they are"
        )
    columns_read = _read([source] if paths is None else paths, _Layout(**arguments))
    return tape_from_codes(*columns_read, least=1)


def read_split(train: Any, validation: Any, test: Any, **arguments: Any) -> Split:
    """Interactions that are split already: each part as ``read_interactions`` takes it, with the same arguments.

    A user's events are those of training, then of validation, then of test, each in time; see ``Split.in_time``.

    Args:
        train, test: files or frames.
        validation: the same, or None.

    Raises:
        DataError, OSError, ImportError: as ``read_interactions``.
    """
    layout = _Layout(**arguments)
    parts = []
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        paths = _paths(part)
        if paths is None and not frames.is_table(part) and (part is not None or name != "validation"):
            raise DataError(f"{name} is a {type(part).__name__}, expected a file or a data frame")
        if part is not None:
            parts.append(_read([part] if paths is None else paths, layout))
    columns = _joined(parts)
    given = np.repeat([TRAINING, VALIDATION, TEST] if len(parts) == 3 else [TRAINING, TEST], [len(p[1]) for p in parts])
    data = tape_from_codes(*columns, keep_order=True)
    assert data.order is not None
    number = given[data.order].astype(np.int8)
    early = np.flatnonzero((np.diff(data.event_users) == 0) & (np.diff(number) < 0))
    if len(early):
        warnings.warn(
            f"{len(early)} times an event of a later part is older than the user's next one of an earlier part (the "
            f"first: user {data.user_ids.decode(data.event_users[early[:1]])[0]!r}): the parts stay as they are, and "
            "histories are the training part alone",
            stacklevel=2,
        )
    return split_by_parts(replace(data, order=None), number, "given", {}, not len(early))


@dataclass(frozen=True)
class _Layout:
    """How the sources of one call are read; see ``read_interactions``."""

    user: str | int = "user_id"
    item: str | int = "item_id"
    timestamp: str | int | None = "timestamp"
    format: str | None = None
    separator: str | None = None
    columns: Sequence[str] | None = None
    header: bool = True
    id_types: Mapping[str, str] = field(default_factory=dict)
    rating: str | int | None = None
    third: str = "timestamp"  # what the column of times is: of ratings in the pass that reads those

    def __post_init__(self) -> None:
        for role, name in self.names.items():
            if isinstance(name, list | dict | set):
                raise DataError(f"{role} is {name!r}, expected the name or the number of one column")
        if isinstance(self.columns, str) or not isinstance(self.id_types, Mapping):
            raise DataError(
                f"columns is {self.columns!r} and id_types is {self.id_types!r}, expected a list of names and a mapping"
            )
        if len(set(self.names.values())) < len(self.names):
            raise DataError(f"user, item and timestamp must be different columns: {self.names}")
        for role, kind in self.id_types.items():
            if role not in ("user", "item") or kind not in ("int", "str"):
                raise DataError(f"id_types is {dict(self.id_types)}, expected 'int' or 'str' for 'user' and 'item'")

    @property
    def names(self) -> dict[str, Any]:
        """Column by role."""
        names = {"user": self.user, "item": self.item}
        return names if self.timestamp is None else {**names, self.third: self.timestamp}


class _NoEventsError(DataError):
    """A source without events, which is none of several files' fault."""


def _paths(source: Any) -> list[Path] | None:
    """The files of a source that is a path, a folder or several of them; None for what is in memory."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            return files_of(path)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    if not isinstance(source, list | tuple) or not source:
        return None
    if not all(isinstance(path, str | os.PathLike) for path in source):
        return None
    if not any(isinstance(path, os.PathLike) or os.path.exists(path) for path in source):
        return None  # ids
    return [file for path in source for file in _paths(path) or []]


def _read(sources: Sequence[Any], layout: _Layout) -> Columns:
    """The columns of files or frames, one after the other."""
    parts, empty = [], None
    for source in sources:
        try:
            parts.append(_read_one(source, layout))
        except DataError as error:
            text = str(error)
            if isinstance(source, Path):
                text = f"{source}{', ' if text.startswith(('line ', 'row ')) else ': '}{text}"
            if not isinstance(error, _NoEventsError):
                raise DataError(text) from None
            empty = empty or DataError(text)
    if not parts:
        raise empty or DataError("no files")
    return _joined(parts)


def _read_one(source: Any, layout: _Layout) -> Columns:
    """The columns of a file or a frame, ratings in a pass of their own."""
    read = _read_file if isinstance(source, Path) else _from_frame
    columns = read(source, layout)
    if layout.rating is None:
        return columns
    ratings = read(source, replace(layout, timestamp=layout.rating, rating=None, third="rating"))[4]
    return *columns[:5], ratings


def _joined(parts: list[Columns]) -> Columns:
    """Columns one below the other: the ids of all, as text where those of one part are."""
    if len(parts) == 1:
        return parts[0]
    users = _joined_ids([part[:2] for part in parts])
    items = _joined_ids([part[2:4] for part in parts])
    times = [part[4] for part in parts if part[4] is not None]
    each = [part[5] for part in parts if part[5] is not None]
    ratings = np.concatenate(each) if each else None
    if not times:
        return *users, *items, None, ratings
    wide = [column for column in times if column.dtype == np.int64 and max(column.max(), -column.min()) > EXACT]
    if wide and any(column.dtype == np.float64 for column in times):
        raise DataError(rounded(int(wide[0].max())))
    units = sorted({unit for column in times if (unit := doubt(column)[0]) is not None})
    if len(units) > 1:
        what = " and in ".join(UNITS[unit] for unit in units)
        warnings.warn(f"the files have times in {what} since 1970: convert them to one unit first", stacklevel=4)
    return *users, *items, np.concatenate(times), ratings


def _joined_ids(columns: list[tuple[IdMap, NDArray[np.int32]]]) -> tuple[IdMap, NDArray[np.int32]]:
    kind = "str" if any(ids.kind == "str" for ids, _ in columns) else "int"
    columns = [_as_type(ids, codes, kind, "") for ids, codes in columns]
    known = IdMap([value for ids, _ in columns for value in ids.values])
    return known, np.concatenate([known.encode(ids.values).astype(np.int32)[codes] for ids, codes in columns])


def _as_type(ids: IdMap, codes: NDArray[np.int32], kind: str | None, column: Any) -> tuple[IdMap, NDArray[np.int32]]:
    """A column of ids as integers or as strings."""
    if kind in (None, ids.kind):
        return ids, codes
    if kind == "str":
        values: list[Any] = [str(value) for value in ids.values]
    else:
        for text in ids.values:
            if not re.fullmatch("[+-]?[0-9]{1,18}", str(text)):
                raise DataError(f"column {column!r} is to be of integers, and {text!r} is none: declare it as str")
        values = [int(text) for text in ids.values]
    known = IdMap(values)
    return known, known.encode(values).astype(np.int32)[codes]


def from_sequences(sequences: Iterable[Iterable[RawId]] | Mapping[RawId, Iterable[RawId]]) -> Interactions:
    """Histories in memory, oldest event first.

    Args:
        sequences: lists of item ids (or arrays, tensors, Series, generators). In a mapping or a pandas Series with an
            index of its own, users are its keys; in any other collection they are 0, 1, … A user with an empty list
            is left out.

    Raises:
        DataError: if ids are mixed or missing, or no user has two events.
    """
    if isinstance(sequences, str | bytes | set | frozenset) or not isinstance(sequences, Iterable):
        raise DataError(
            f"expected a path, a data frame, lists of item ids or a mapping, got {type(sequences).__name__}"
        )
    users: list[Any] = []
    items: list[Any] = []
    lengths: list[int] = []
    if hasattr(sequences, "to_pylist"):  # an Arrow array gives scalars of its own
        sequences = sequences.to_pylist()
    for name, history in frames.keyed(sequences) or enumerate(sequences):
        if (listed := frames.as_list(history)) is None:
            raise DataError(f"user {name!r}: expected a list of item ids, oldest first, got {brief(history)}")
        items.extend(listed)
        users.extend([name] * len(listed))
        lengths.append(len(listed))
    if len(set(lengths)) == 1:
        rows, columns = lengths[0] == 3, len(lengths) == 3
        ends = [(items[::3], items[2::3])] * rows + [(items[: lengths[0]], items[-lengths[0] :])] * columns
        if any(looks_like_times(last) and not looks_like_times(first) for first, last in ends):
            warnings.warn(
                "lists are histories of item ids, and these look like users, items and times: for those pass a data "
                "frame or a file",
                stacklevel=3,
            )
    return build_interactions(stripped(users, "user"), stripped(items, "item"))


def _read_file(path: Path, layout: _Layout) -> Columns:
    start = b""
    with unpacked(path) as (file, inside):
        format = layout.format or EXTENSIONS.get(inside.suffix.lower())
        if format is None or not layout.header:  # a pipe can be read only once
            start = file.read(1 << 16)
    numbered = not layout.header and layout.columns is None
    if format is None:
        format = "csv" if numbered or layout.columns is not None else _guess(start, inside.suffix, layout.names)
    if format not in FORMATS:
        raise DataError(f"unknown format {format!r}; {_choices()}")
    if format not in ("csv", "tsv") and (layout.separator, layout.columns, layout.header) != (None, None, True):
        raise DataError(f"header=False, separator and columns are for formats 'csv' and 'tsv', not {format!r}")
    if format == "parquet":
        if inside != path:
            raise DataError("packed Parquet is not read: unpack the file")
        return _from_frame(frames.read_parquet(path, list(layout.names.values())), layout)
    with unpacked(path) as (file, _):
        if format in ("sequences", "user_sequences", "pairs"):
            if layout.third == "rating":
                raise DataError(f"format {format!r} has no column of ratings")
            if re.fullmatch(rb"[\d\s]*,[\d\s,]*", file.peek(1 << 12)):
                raise DataError(
                    f"format {format!r} separates ids by blanks, and these numbers are separated by commas: replace "
                    "the commas by blanks"
                )
            names = {"pairs": ["user", "item"], "user_sequences": ["user"], "sequences": []}[format]
            return _from_text(file, None, names, [0, 1], 1, path, layout)
        line, first = 1, ""
        if numbered:
            _, first = _header(io.BytesIO(start.decode("utf-8-sig", "replace").encode()))
        elif layout.columns is None:
            line, first = _header(file)
        separator = layout.separator or ("\t" if format in ("tsv", "inter") else _separator(first, layout))
        if "\n" in separator or '"' in separator:
            raise DataError(f"separator {separator!r} contains a newline or a quote")
        present = _split(first, separator) if layout.columns is None else list(layout.columns)
        if format == "inter":
            present = [name.split(":")[0] for name in present]
        elif layout.columns is None and layout.header:
            _check_separator(first, separator, present, layout.names)
        locate = _number if numbered else _position
        columns = [locate(present, name, role) for role, name in layout.names.items()]
        if numbered:
            present = [str(number) for number in range(len(present))]
        return _from_text(file, separator, present, columns, line, path, layout)


def _number(present: list[Any], name: str | int, role: str) -> int:
    """The number of a column of a file without a header, and the same as its name."""
    if isinstance(name, str):
        raise DataError(f"without a header columns have numbers from 0: {role} is {name!r}, give its number ({role}=0)")
    if not 0 <= name < len(present):
        raise DataError(
            f"{role} is column {name}, and the first line has columns 0 to {len(present) - 1}: give another number"
            + (", or timestamp=None (timestamp_label: null) for the order of the lines" if role == "timestamp" else "")
        )
    return name


def _from_text(
    file: io.BufferedReader,
    separator: str | None,
    present: list[str],
    columns: list[int],
    line: int,
    path: Path,
    layout: _Layout,
) -> Columns:
    """The rest of the file, as ``read_text`` takes it."""
    start = file.peek(3)[:3] if line == 1 else b"-"
    if start == b"\xef\xbb\xbf":
        file.read(3)
    (users, user_codes), (items, item_codes), times = read_text(file, separator, present, columns, line, f"{path}, ")
    if not len(user_codes):
        raise _NoEventsError(
            "no events: nothing but a header or blank lines" if start else "no events: the file is empty"
        )
    return _typed(users, user_codes, items, item_codes, times, layout)


def _typed(users: IdMap, user_codes: Any, items: IdMap, item_codes: Any, times: Any, layout: _Layout) -> Columns:
    users, user_codes = _as_type(users, user_codes, layout.id_types.get("user"), layout.user)
    items, item_codes = _as_type(items, item_codes, layout.id_types.get("item"), layout.item)
    return users, user_codes, items, item_codes, times, None


def _from_frame(table: Any, layout: _Layout) -> Columns:
    names = layout.names
    frame = frames.as_frame(table, list(names.values()))
    if not set(names.values()) <= set(frame.columns) and set(names.values()) & set(frames.index_names(frame)):
        frame = frame.reset_index([name for name in frames.index_names(frame) if name not in frame.columns])
    present = list(frame.columns)
    for role, name in names.items():
        _position(present, name, role)
    if not len(frame):
        raise _NoEventsError("no events: the data frame has no rows")
    user_ids, user_codes = frames.ids(frame[names["user"]], names["user"])
    item_ids, item_codes = frames.ids(frame[names["item"]], names["item"])
    times = frames.times(frame[names[layout.third]], names[layout.third]) if layout.third in names else None
    return _typed(user_ids, user_codes, item_ids, item_codes, times, layout)


def _header(file: IO[bytes]) -> tuple[int, str]:
    """The first line that is not blank, and the number of the line after it."""
    number = 1
    while raw := file.readline(LONGEST_HEADER):
        number += 1
        try:
            text = raw.decode("utf-8-sig" if number == 2 else "utf-8").strip("\r\n")
        except UnicodeDecodeError:
            raise DataError(f"line {number - 1}: the header is not UTF-8 text: unpack or convert the file") from None
        if "\0" in text or (not raw.endswith(b"\n") and len(raw) == LONGEST_HEADER):
            raise DataError(f"line {number - 1}: the header is not text: unpack the file, or convert it to UTF-8")
        if text.strip():
            return number, text
    raise _NoEventsError("no events: the file is empty")


def _split(header: str, separator: str) -> list[str]:
    if (fields := split_record(header.encode() + b"\n", separator)) is None:
        raise DataError(f"the header cannot be split at {separator!r} (a quote is never closed)")
    return [field.decode() for field in fields]


def _separator(first: str, layout: _Layout) -> str:
    """The separator whose columns include user and item; a comma where none does."""
    for candidate in ("::", "\t", ",", ";", "|", " ") if not layout.header else SEPARATORS:
        fields = _split(first, candidate)
        if {layout.user, layout.item} <= set(fields) if layout.header else len(fields) > 1:
            return candidate
    return ","


def _check_separator(header: str, separator: str, present: list[str], names: dict[str, Any]) -> None:
    """Names the separator that would give the columns, or that is likely where this one splits nothing."""
    if _DATA.fullmatch(header):  # no header at all: _position says so
        return
    missing = [name for name in names.values() if name not in present]
    others = [other for other in (*SEPARATORS, "::", " ") if other != separator and other in header]
    wanted = {str(name).encode() for name in names.values()}
    right = [other for other in others if wanted <= set(split_record(header.encode() + b"\n", other) or [])]
    if missing and (right or (others and len(present) == 1)):
        raise DataError(
            f"split at {separator!r}, the header has no column {missing[0]!r}; is it separated by "
            f"{(right or others)[0]!r}? Set separator= (in a configuration: reader.sep)"
        )


def _position(present: list[Any], name: str | int, role: str) -> int:
    if present.count(name) == 1:
        return present.index(name)
    if name in present:
        raise DataError(f"column {name!r} occurs {present.count(name)} times in the header")
    texts = [str(column) for column in present]
    near = nearest(str(name), texts)
    hint = "" if near is None else f"; did you mean {present[texts.index(near)]!r}?"
    label = {"user": "user_id", "item": "item_id"}.get(role, role) + "_label"
    remedy = f"name the column with {role}=… (in a configuration: reader.labels.{label})" + (
        ", or pass timestamp=None (null) to keep the order given" if role == "timestamp" else ""
    )
    if isinstance(name, int):
        remedy += "; column numbers are for files without a header: header=False (reader.header: false)"
    elif present and all(map(_DATA.fullmatch, texts)):
        remedy = (
            f"the first line looks like data: pass header=False and the columns' numbers, {role}=0 or another (in a "
        )
        remedy += "configuration: reader.header: false)"
    raise DataError(f"no column {name!r}{hint} (columns: {', '.join(map(repr, present[:20]))}): {remedy}")


def _guess(start: bytes, suffix: str, names: dict[str, Any]) -> str:
    """The format of a file without a telling extension, from its first bytes."""
    if start.startswith(b"PAR1"):
        return "parquet"
    lines = [line for line in start.decode("utf-8-sig", "replace").splitlines() if line.strip()]
    if len(start) == 1 << 16 and len(lines) > 1:
        lines.pop()  # cut off in its middle
    if not lines:
        raise _NoEventsError("no events: the file is empty")
    if ":token" in lines[0] and "\t" in lines[0]:
        return "inter"
    for candidate in SEPARATORS:
        if {names["user"], names["item"]} <= set(_split(lines[0], candidate)):
            return "csv"
    words = [line.split() for line in lines]
    counts = {len(line) for line in words}
    if not any(mark in line for line in lines for mark in ",;|\0\ufffd"):
        if counts == {2}:
            return "pairs"
        if len(counts) > 1 and not any("\t" in line for line in lines):
            return _guess_sequences(words)
    raise DataError(
        f"the format is not clear from the extension {suffix!r} or the first lines; {_choices()} (these three separate "
        "ids by blanks, tabs too); or header=False (reader.header: false) for columns without a header"
    )


def _guess_sequences(lines: list[list[str]]) -> str:
    """Whether lines of words start with the user's id, where that is certain.

    Raises:
        DataError: naming both formats.
    """
    first, second = [line[0] for line in lines], [line[1] for line in lines if len(line) > 1]
    if 1 + sum(a != b for a, b in pairwise(first)) > len(set(first)):
        return "sequences"  # a word comes back: a user has one line, or lines in a row
    # Users are numbered one by one, and second words are not: 1 2 3, 2 3 4, … may be items.
    if len(first) >= 20 and _count_up(first) and not _count_up(second):
        return "user_sequences"
    # Users are words and items numbers, or the other way round.
    kinds = [{word.isdecimal() for word in words} for words in (first, {word for line in lines for word in line[1:]})]
    if kinds in ([{True}, {False}], [{False}, {True}]):
        return "user_sequences"
    raise DataError(
        f"it is not clear whether the first word of a line, {first[0]!r}, is the user or the user's first item: "
        "pass format='user_sequences' or format='sequences' (in a configuration: reader.file_format)"
    )


def _count_up(words: list[str]) -> bool:
    return all(a.isdecimal() and b.isdecimal() and int(b) == int(a) + 1 for a, b in pairwise(words))


def _choices() -> str:
    return "pass format= one of " + "; ".join(f"{name!r}: {what}" for name, what in FORMATS.items())
