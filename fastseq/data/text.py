"""Delimited text to factorised columns, through polars.

The file is read in blocks of ``BLOCK`` bytes, so beside the columns there is never more than one block and its frame.
polars splits every stretch of records that it takes as we do. Python splits the records between them, ``BATCH`` bytes
at a time (a quote inside of a field beside quoted fields, spaces before a quote); it also finds the line of an error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastseq.errors import DataError

from .frames import import_polars
from .ids import BLANKS, MISSING, IdMap, factorise
from .times import EXACT, doubt, rounded

BLOCK = 8 << 20  # bytes per read
LONGEST_RECORD = 1 << 28
BATCH = 1 << 13  # bytes that Python splits at a time; what follows is tried with polars again
BLANK_LINE = re.compile(rb"(?:\A|\n)[ \t\r]*\n")
REPLACEMENT = "\ufffd"  # what lossy decoding makes of bytes that are not UTF-8
WORD = re.compile(rb"[^ \t\r\n]+")
UNUSED = b"\x1f"  # stands for a separator of several bytes: polars takes one
NUMBER = r"^-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
NOT_ZERO = r"^[^eE]*[1-9]"
DATETIME = (
    r"^(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ](?P<minute>[0-9]{2}:[0-9]{2})(?::(?P<second>[0-5][0-9])(?:\.(?P<fraction>[0-9]+))?)?"
    r"(?:Z|(?P<sign>[+-])(?P<zone_hours>[01][0-9]|2[0-3])(?::?(?P<zone_minutes>[0-5][0-9]))?)?)?$"
)
Rows: TypeAlias = tuple[list[Any], Callable[[int], int]]  # columns as series of texts; the line of a row
Problem: TypeAlias = tuple[int, str]  # row and what is wrong with its field


def read_text(
    file: IO[bytes], separator: str | None, names: list[str], columns: list[int], line: int, source: str = ""
) -> tuple[tuple[IdMap, NDArray[np.int32]], tuple[IdMap, NDArray[np.int32]], NDArray[Any] | None]:
    """The rest of a file as columns.

    Args:
        file: at the start of line ``line``.
        separator: between fields, of any length; None: runs of spaces and tabs, and then nothing is quoted.
        names: the file's columns. Every record has as many fields. Of words alone: empty where every line holds the
            items of one user, whose id is the line's number; ``["user"]`` where that id stands in front of them.
        columns: positions in ``names`` of user, item and, if it is read, timestamp.
        line: number of the next line, from 1.
        source: what warnings have in front of the line, such as the name of the file.

    Returns:
        ``(user ids, codes)``, ``(item ids, codes)`` and times: codes int32 [events]; times int64 or float64 [events],
        datetimes as microseconds since 1970-01-01 UTC, or None.

    Raises:
        DataError: naming line and column.
        ImportError: if polars is not installed.
    """
    reader = _TextReader(separator, names, columns, line, source)
    rest = b""
    while block := file.read(BLOCK):
        rest += block
        stop = rest.rfind(b"\n") + 1
        if stop:
            rest = rest[reader.feed(rest[:stop]) :]
        if len(rest) > LONGEST_RECORD:
            raise DataError(
                f"line {reader.line}: a line longer than {LONGEST_RECORD >> 20} MiB: is this text, are its quotes "
                "closed?"
            )
    if rest and reader.feed(rest + b"\n") <= len(rest):
        raise DataError(f"line {reader.line}: a quote opened in this record is never closed")
    return reader.users.finish(), reader.items.finish(), reader.times.finish() if reader.times else None


def split_record(text: bytes, separator: str) -> list[bytes] | None:
    """The fields of the first record of ``text``, which ends with a newline; None where a quote is never closed."""
    return next((fields for _, _, fields in _Splitter(separator).records(text, 1)), None)


class _Splitter:
    """Splits text into records by the rules, one field at a time.

    A field that starts with a quote, after spaces or none, runs to the closing quote, newlines included; ``""`` in it
    is a quote, and what follows the closing quote belongs to the field. Elsewhere a quote is a character. Spaces, tabs
    and carriage returns around a field do not count, nor do blank lines.
    """

    def __init__(self, separator: str | None) -> None:
        self.words = separator is None
        between = re.escape((separator or ",").encode())
        plain = rb"(?:(?!%b)[^\n])*+" % between
        lead = b"" if separator and separator[0] == " " else b" *+"
        self.opening = re.compile(rb'(?:\n|\A|%b)%b"' % (between, lead))  # in front of every quoted field
        self._field = re.compile(rb'%b(?:"((?:[^"]++|"")*+)"(%b)|(?!")(%b))(%b|\n)' % (lead, plain, plain, between))

    def records(self, text: bytes, line: int, begin: int = 0) -> Iterator[tuple[int, int, list[bytes]]]:
        """Line, end in ``text`` and fields of every record from ``begin`` on; a blank line has no fields.

        Stops before a quote that ``text`` does not close.
        """
        if self.words:
            while end := text.find(b"\n", begin) + 1:
                yield line, end, WORD.findall(text, begin, end)
                begin, line = end, line + 1
            return
        fields, start, end = [], begin, begin
        while match := self._field.match(text, end):
            inside, after, plain, stop = match.groups()
            fields.append((plain if inside is None else inside.replace(b'""', b'"') + after).strip(BLANKS.encode()))
            end = match.end()
            if stop == b"\n":
                yield line, end, [] if fields == [b""] else fields
                line += text.count(b"\n", start, end)
                fields, start = [], end


class _TextReader:
    """Takes a text in pieces of whole lines and fills the columns.

    Attributes:
        line: number of the first line not read yet.
    """

    def __init__(
        self, separator: str | None, names: list[str], columns: list[int], line: int, source: str = ""
    ) -> None:
        self.pl = import_polars("reading a text file")
        self.line = line
        self.separator = (separator or "").encode()  # empty: words
        self.names, self.columns = names, columns
        self.of_one_user = separator is None and len(names) < 2
        self.splitter = _Splitter(separator)
        self.users, self.items = _Ids("user"), _Ids("item")
        self.times = _Times() if len(columns) == 3 else None
        self.source = source
        self._orderly = None
        if len(self.separator) == 1 and self.separator != b"\r":
            between = re.escape(self.separator)
            field = rb'(?:"(?:[^"]++|"")*+"|[^"\n%b]*+)' % between
            # Records of the right number of fields with quotes around whole fields alone: what polars reads as we do.
            # Blank lines may follow; they are no part of the group.
            self._orderly = re.compile(
                rb"((?:%b(?:%b%b){%d}\r?\n)*+)(?:[%b]*+\n)*+"
                % (field, between, field, len(names) - 1, BLANKS.encode().replace(self.separator, b""))
            )

    def feed(self, text: bytes) -> int:
        """Reads the records of ``text`` that are complete; returns how many bytes they took."""
        start, room = 0, len(text)  # polars gets at most ``room`` bytes: half as many where it failed
        while start < len(text):
            end, quoted = self._stretch(text, start, min(start + room, len(text)))
            if end > start and self._read_plain(text[start:end], quoted):
                start, room = end, min(2 * room, len(text))
            elif end > start and room > 2 * BATCH:
                room //= 2
            elif (end := self._read_exactly(text, start)) > start:
                start = end
            else:
                break
        return start

    def _stretch(self, text: bytes, start: int, stop: int) -> tuple[int, bool]:
        """The end of the records from ``start`` on that are one for polars, and whether it has to mind their quotes.

        It is ``start`` where there are so few of them that Python is as fast.
        """
        quote = text.find(b'"', start, stop) if self.separator else -1
        opening = self.splitter.opening.search(text, max(start - 1, 0), stop) if quote >= 0 else None
        if opening is None:
            return text.rfind(b"\n", start, stop) + 1 or start, False
        end = start
        if self._orderly:
            while (match := self._orderly.match(text, end, stop)) and match.end() > end:
                end = match.end()
        if end == stop or end - start >= BATCH:
            return end, True
        end = text.rfind(b"\n", start, opening.end()) + 1
        return (end if end - start >= BATCH else start), False

    def _read_plain(self, text: bytes, quoted: bool) -> bool:
        """Reads whole records through polars; False, with nothing read, where it does not split them as we do."""
        pl = self.pl
        try:
            rows = self._fields(text, quoted) if self.separator else self._words(text)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError):
            return False
        if rows is None:
            return False
        self._keep(*rows)
        self.line += text.count(b"\n")
        return True

    def _fields(self, text: bytes, quoted: bool) -> Rows | None:
        pl, separator, width = self.pl, self.separator, len(self.names)
        plain = text
        if quoted and self._orderly and BLANK_LINE.search(text):
            plain = b"".join(self._orderly.findall(text))
        plain = plain.lstrip(b"\n" if separator == b"\r" else b"\r\n")  # polars counts the columns of the first line
        if plain.startswith(b"\xef\xbb\xbf"):  # which polars drops; here it is text
            return None
        if len(separator) > 1 or separator == b"\r":
            if UNUSED in text:
                return None
            plain, separator = plain.replace(separator, UNUSED), UNUSED
        lossy = not _is_utf8(plain)
        frame = pl.read_csv(
            plain,
            has_header=False,
            schema={str(column): pl.String for column in range(width)},
            columns=sorted(self.columns),
            separator=separator.decode(),
            quote_char='"' if quoted else None,
            encoding="utf8-lossy" if lossy else "utf8",
        )
        if not quoted:  # polars fills up a short line, may cut off a long one, and makes a row of a blank one
            full = _full_lines(plain, separator, width)
            if full is None or len(full) != len(frame):
                return None
            frame = frame.filter(pl.Series(full))
        read = [frame[str(column)] for column in self.columns]
        if lossy and any(texts.str.contains(REPLACEMENT, literal=True).any() for texts in read):
            return None
        lines = (line for line, _, fields in self.splitter.records(text, self.line) if fields)
        return read, lambda row: next(islice(lines, row, None))

    def _words(self, text: bytes) -> Rows | None:
        pl = self.pl
        lines = pl.Series([text.decode()]).str.split("\n").explode()
        frame = pl.DataFrame({"words": lines.str.extract_all(r"[^ \t\r]+")}).with_row_index("line", self.line)
        frame = frame.filter(pl.col("words").list.len() > 0)
        if self.of_one_user:
            if self.names:
                user, items = pl.col("words").list.first(), pl.col("words").list.slice(1)
                frame = frame.filter(pl.col("words").list.len() > 1).select("line", user=user, words=items)
            frame = frame.explode("words")
            return [frame["user" if self.names else "line"].cast(pl.String), frame["words"]], frame["line"].__getitem__
        if (frame["words"].list.len() != len(self.names)).any():
            return None
        return [frame["words"].list.get(column) for column in self.columns], frame["line"].__getitem__

    def _read_exactly(self, text: bytes, start: int) -> int:
        """Reads complete records from ``start`` on one by one, ``BATCH`` bytes or one more; returns their end."""
        rows: list[tuple[int, list[str]]] = []
        problem, end = None, start
        for line, end, fields in self.splitter.records(text, self.line, start):
            try:
                rows += self._decoded(line, fields)
            except DataError as error:
                problem = error
                break
            if end - start >= BATCH:
                break
        columns = [[texts[column] for _, texts in rows] for column in range(len(self.columns))]
        self._keep(
            [self.pl.Series(column, dtype=self.pl.String) for column in columns],
            [line for line, _ in rows].__getitem__,
        )
        if problem:  # a record before it may have been worse
            raise problem
        self.line += text.count(b"\n", start, end)
        return end

    def _decoded(self, line: int, fields: list[bytes]) -> list[tuple[int, list[str]]]:
        """The rows of a record: its line, and user, item and time as text."""
        width = len(self.names)
        if self.of_one_user:
            user, items = (fields[0], fields[1:]) if width and fields else (b"%d" % line, fields)
            rows = [[user, item] for item in items]
        elif fields and len(fields) != width:
            raise DataError(f"line {line}: {len(fields)} field{'s' * (len(fields) != 1)}, expected {width}")
        else:
            rows = [[fields[c] for c in self.columns]] if fields else []
        try:
            return [(line, [field.decode() for field in row]) for row in rows]
        except UnicodeDecodeError as error:
            column = [field for row in rows for field in row].index(error.object) % len(self.columns)
            raise DataError(f"line {line}{self._label(column)}: {_shown(error.object)} is not UTF-8 text") from None

    def _label(self, column: int) -> str:
        return "" if self.of_one_user else f", column {self.names[self.columns[column]]!r}"

    def _keep(self, columns: list[Any], line_of: Callable[[int], int]) -> None:
        """Adds columns of text to what is read; ``line_of`` gives the line of a row."""
        if not len(columns[0]):  # blank lines
            return
        targets: list[_Ids | _Times] = [self.users, self.items, *([self.times] if self.times else [])]
        problems = []
        for column, (target, texts) in enumerate(zip(targets, columns, strict=True)):
            if (problem := target.add(texts, self.pl)) is not None:
                problems.append((problem[0], column, problem[1]))
        if problems:
            row, column, what = min(problems)
            raise DataError(f"line {line_of(row)}{self._label(column)}: {what}")
        if self.times and self.times.doubt:
            row, what = self.times.doubt
            self.times.doubt = None
            warnings.warn(f"{self.source}line {line_of(row)}{self._label(2)}: {what}", stacklevel=2)


class _Ids:
    """A column of ids: integers as long as every one is printed as Python prints it, then text.

    Integers are kept as they are, in the fewest bytes; text as codes into ``index``, in the order of appearance.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.parts: list[NDArray[Any]] = []
        self.index: dict[str, int] | None = None

    def add(self, texts: Any, pl: Any) -> Problem | None:
        """Adds a series of texts; or adds nothing and returns the first that is no id."""
        if self.index is None and (numbers := _integers(texts, pl)) is not None:
            self.parts.append(numbers.shrink_dtype().to_numpy())
            return None
        texts = texts.str.strip_chars(BLANKS).fill_null("")
        if self.index is None and (numbers := _integers(texts, pl)) is not None:
            self.parts.append(numbers.shrink_dtype().to_numpy())
            return None
        distinct = texts.unique()
        bad = distinct.filter(distinct.is_in(MISSING) | distinct.str.contains("\0", literal=True))
        if len(bad):
            row = int(texts.is_in(bad.to_list()).arg_max())
            if texts[row] in MISSING:
                return row, f"the id is missing ({_shown(texts[row])}); drop the line or name the id"
            return row, f"{_shown(texts[row])} is not UTF-8 text"
        if self.index is None:
            known, codes = np.unique(self._joined(), return_inverse=True)
            self.index = {str(number): code for code, number in enumerate(known.tolist())}
            self.parts = [codes.astype(np.int32)]
        index = self.index
        codes_of = np.fromiter((index.setdefault(text, len(index)) for text in distinct), np.int32, len(distinct))
        self.parts.append(codes_of[texts.cast(pl.Enum(distinct)).to_physical().to_numpy()])
        return None

    def finish(self) -> tuple[IdMap, NDArray[np.int32]]:
        """The map of the ids, and the index of each row's id, int32 [rows]."""
        joined = self._joined()
        if self.index is None:
            return factorise(joined, self.name)
        texts = sorted(self.index)
        rank = np.empty(len(texts), np.int32)
        rank[[self.index[text] for text in texts]] = np.arange(len(texts), dtype=np.int32)
        return IdMap.from_sorted(texts), rank[joined]

    def _joined(self) -> NDArray[Any]:
        joined = np.concatenate(self.parts) if self.parts else np.empty(0, np.int64)
        self.parts.clear()
        return joined


class _Times:
    """A column of times: int64, float64 once one needs it; or all of them datetimes, as int64 microseconds."""

    def __init__(self) -> None:
        self.parts: list[NDArray[Any]] = []
        self.datetimes: bool | None = None  # None before the first
        self.fractions = self.wide = False  # whether there were floats, and integers that a float cannot hold
        self.unit: int | None = None
        self.doubt: Problem | None = None  # of the rows added last; a column has one at most
        self.doubted = False

    def add(self, texts: Any, pl: Any) -> Problem | None:
        """Adds a series of texts; or adds nothing and returns the first that is no time, or of the other kind."""
        if not self.datetimes and (numbers := _integers(texts, pl)) is not None:
            self.datetimes = False
            return self._add_numbers(numbers, texts, pl)
        texts = texts.str.strip_chars(BLANKS).fill_null("")
        numbers = _numbers(texts, pl)
        if self.datetimes is None:
            self.datetimes = numbers[0] is None and _microseconds(texts[:1], pl)[0] is not None
        values = _microseconds(texts, pl) if self.datetimes else numbers
        if values.null_count() == 0:
            if not self.datetimes:
                return self._add_numbers(values, texts, pl)
            self.parts.append(values.to_numpy())
            return None
        row = int(values.is_null().arg_max())
        text = texts[row]
        if text in MISSING:
            return row, f"the timestamp is missing ({_shown(text)}); drop the line or fill it"
        if self.datetimes:
            return row, f"{_shown(text)} is not a datetime (YYYY-MM-DD[ HH:MM[:SS]]) as those before it"
        if _microseconds(texts[row : row + 1], pl)[0] is not None:
            return row, f"{_shown(text)} is a datetime, the timestamps before it are numbers"
        return row, f"{_shown(text)} is not a timestamp (an integer, a float, or YYYY-MM-DD[ HH:MM[:SS]])"

    def _add_numbers(self, numbers: Any, texts: Any, pl: Any) -> Problem | None:
        integers = numbers if numbers.dtype == pl.Int64 else texts.cast(pl.Int64, strict=False)
        fractions, wide = integers.is_null(), ((integers > EXACT) | (integers < -EXACT)).fill_null(False)
        rows = [0 if before else mask.arg_max() for before, mask in ((self.fractions, fractions), (self.wide, wide))]
        self.fractions, self.wide = self.fractions or fractions.any(), self.wide or wide.any()
        if self.fractions and self.wide:
            row = max(rows)
            return row, rounded(_shown(texts[row]))
        times = numbers.to_numpy()
        self.unit, problem = doubt(times, self.unit)
        if problem is not None and not self.doubted:
            self.doubt, self.doubted = problem, True
        self.parts.append(times)
        return None

    def finish(self) -> NDArray[Any]:
        """The times [rows]."""
        joined = np.concatenate(self.parts) if self.parts else np.empty(0, np.int64)
        self.parts.clear()
        return joined


def _integers(texts: Any, pl: Any) -> Any | None:
    """int64 numbers where every text is an integer as Python prints it (no plus sign, leading zero or "-0")."""
    numbers = texts.cast(pl.Int64, strict=False)
    return numbers if numbers.null_count() == 0 and (numbers.cast(pl.String) == texts).all() else None


def _numbers(texts: Any, pl: Any) -> Any:
    """int64 numbers where every text is an integer, float64 ones elsewhere; null where a text is no finite number."""
    if (integers := _integers(texts, pl)) is not None:
        return integers
    numbers = texts.cast(pl.Float64, strict=False)
    underflow = (numbers == 0) & texts.str.contains(NOT_ZERO)
    return pl.select(pl.when(texts.str.contains(NUMBER) & numbers.is_finite() & ~underflow).then(numbers)).to_series()


def _microseconds(texts: Any, pl: Any) -> Any:
    """int64 microseconds since 1970-01-01 UTC; null where a text is no datetime. Without a zone it is in UTC."""
    parts = texts.str.extract_groups(DATETIME).struct.unnest()

    def number(digits: Any) -> Any:
        return digits.cast(pl.Int64).fill_null(0)

    minute = pl.concat_str("day", pl.lit(" "), pl.col("minute").fill_null("00:00")).str.to_datetime(
        "%Y-%m-%d %H:%M", time_unit="us", strict=False
    )
    fraction = pl.col("fraction").str.slice(0, 6).str.pad_end(6, "0")
    zone = (number(pl.col("zone_hours")) * 60 + number(pl.col("zone_minutes"))) * pl.when(pl.col("sign") == "-").then(
        -1
    ).otherwise(1)
    return parts.select(
        minute.to_physical() + number(pl.col("second")) * 1_000_000 + number(fraction) - zone * 60_000_000
    ).to_series()


def _full_lines(text: bytes, separator: bytes, width: int) -> NDArray[np.bool_] | None:
    """Which lines have ``width`` fields: bool [lines]; None where one of the others is not blank."""
    raw = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(raw == ord("\n"))
    separators = np.diff(np.searchsorted(np.flatnonzero(raw == separator[0]), ends), prepend=0)
    full = separators == width - 1
    others, lengths = ends[~full], np.diff(ends, prepend=-1)[~full]
    blank = (lengths == 1) | ((lengths == 2) & (raw[others - 1] == ord("\r")))
    return full if blank.all() else None


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _shown(text: str | bytes) -> str:
    """A field for messages: at most 60 bytes, printable ASCII as it is and others as ``\\x`` and two hex digits."""
    raw = text if isinstance(text, bytes) else text.encode()
    shown = "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in raw[:60])
    return f"'{shown}{'…' * (len(raw) > 60)}'"
