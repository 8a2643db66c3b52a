"""Text in pieces of any size: polars and Python split it alike, and an error says where."""

from __future__ import annotations

import io
import re
from typing import Any
from unittest import mock

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastseq.data import text as text_module
from fastseq.data.text import read_text
from fastseq.errors import DataError


def columns_of(text: bytes, separator: str | None, names: list[str], columns: list[int], line: int = 1) -> Any:
    """What ``read_text`` makes of a text: raw user ids, item ids and times, one a row."""
    (users, user_codes), (items, item_codes), times = read_text(io.BytesIO(text), separator, names, columns, line)
    for ids, codes in ((users, user_codes), (items, item_codes)):
        assert sorted(set(codes.tolist())) == list(range(len(ids)))
    return users.decode(user_codes), items.decode(item_codes), times


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_pieces_of_any_size(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "BLOCK", size)
    users, items, times = columns_of(
        'a,"1,\n""x""",5\r\n\r\nb,2,6\n"a","é",-7'.encode(), ",", ["u", "i", "t"], [0, 1, 2]
    )
    assert users == ["a", "b", "a"]
    assert items == ['1,\n"x"', "2", "é"]
    assert times.tolist() == [5, 6, -7]


def test_blank_lines_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "BLOCK", 2)
    users, items, times = columns_of(b"\n\r\n\n1,2,1970-01-02\n\n\n \n1,3,1970-01-01", ",", ["u", "i", "t"], [0, 1, 2])
    assert (users, items, times.tolist()) == ([1, 1], [2, 3], [86_400_000_000, 0])


@pytest.mark.filterwarnings("ignore::UserWarning")  # numbers of any size
@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9)] * 3), min_size=12, max_size=60))
def test_agrees_with_polars(rows: list[tuple[int, int, int]]) -> None:
    frame = pl.DataFrame(rows, schema=dict.fromkeys(("user_id", "item_id", "timestamp"), pl.Int64), orient="row")
    body = frame.write_csv().split("\n", 1)[1].encode()
    assert list(zip(*columns_of(body, ",", frame.columns, [0, 1, 2]), strict=True)) == rows


BODY = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.text(alphabet='0123456789abcü,;\t "\r\n.-:\0', max_size=80).map(str.encode),
        st.sampled_from([b"u,i,t\n", b'1,2,3\n4,"5",6\n', b'"', b"1,nan,3\n", b"9223372036854775808,1,1\n", b"\n\n",
                         b"1,2,2020-01-01 10:00:00\n", b"1,2,1e400\n", b"\xff\xfe", b'"a""b",c,7\n']),
    ),
    max_size=8,
).map(b"".join)  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # times of any size
@settings(deadline=None, max_examples=400)
@given(
    separator=st.sampled_from([",", "::", None, "\t", " ", ";", "\0", "é", "\r", "\x1f"]),
    names=st.sampled_from(["", "u", "ui", "uit", "aubit"]), times=st.booleans(), line=st.sampled_from([1, 2, 2**61]),
    block=st.sampled_from([1, 7, 1 << 20]), batch=st.sampled_from([1, 1 << 16]), body=BODY,
)  # fmt: skip
def test_any_text(
    separator: str | None, names: str, times: bool, line: int, block: int, batch: int, body: bytes
) -> None:
    """Any bytes become columns of equal length, or an error that names the line."""
    if len(names) < 2:
        separator = None  # only words have lines of any number of fields
    columns = [names.index(name) for name in "uit" if name in names and (times or name != "t")]
    columns = columns if len(names) > 1 else [0, 1]
    with mock.patch.multiple(text_module, BLOCK=block, BATCH=batch):
        try:
            users, items, moments = columns_of(body, separator, list(names), columns, line)
        except DataError as error:
            assert re.match(r"line \d+", str(error))
            return
    assert len(users) == len(items) and (moments is None) == (len(columns) == 2)
    assert moments is None or len(moments) == len(users)


ODD = ["1", "2", "10", "7", "007", "-0", "a", "é", " 1", "2 "]
ODD += ["", "1\r2", '"a\rb"', '5" disc', "\ufffd", "\udce9", '"\udce9""b"']
ODD += ['x"y', '"q"', '"q,r"', '"a""b"', '"l\nm"', ' "s"', '"s" ']
ODD += ['"s"t', "9223372036854775808", "1.5", "2020-01-01", "2020-01-01 10:00:00.5+02", "", "nan", "\x1f", "::"]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.lists(st.sampled_from(ODD), min_size=1, max_size=6), max_size=6),
    st.sampled_from([",", "::", " ", "\r"]),
    st.sampled_from(["uit", "unit", "uitn", "nuit", "nuitn"]),
)
@example([["A", "1", "2", "1"], ["B", "000", "1", "3", "1"], ["C", "2", "5"], ["D", "2", "6", "1"]], ",", "nuit")
@example([["1", "1", "2", "1"], ["3"], ["4", "2", "5", "1"]], ",", "nuit")
@example([["1", "2", "3", "x"], ["1", "3"], ["", "", "", "", "", ""], ["2", "5", "6", "x"]], ",", "uitn")
@example([['"a\rb"', "2", "3"]], "\r", "uit")
@example([['"a"', "2", "3"], [""], ["", "2", '"3"'], ["", "", ""]], ",", "uit")
def test_polars_and_python_split_alike(records: list[list[str]], separator: str, names: str) -> None:
    """Whether polars splits a block or Python does, record by record, changes no column and no error."""
    body = "".join(separator.join(fields) + "\n" for fields in records).encode(errors="surrogateescape")
    results = []
    for block, batch, plain in ((1 << 20, 1 << 13, True), (1 << 20, 1, True), (1, 1, True), (1 << 20, 1 << 13, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_module, "BLOCK", block)
            patch.setattr(text_module, "BATCH", batch)
            if not plain:
                patch.setattr(text_module._TextReader, "_read_plain", lambda self, text, quoted: False)
            try:
                users, items, times = columns_of(body, separator, list(names), [names.index(name) for name in "uit"])
                results.append((users, items, times.dtype, times.tolist()))
            except DataError as error:
                results.append(str(error))
    assert all(result == results[0] for result in results)


QUOTED = [b'"%d","%d","x, ""y"" %d","%d"\n' % (n % 900, n % 700, n, n) for n in range(20_000)]
BARE = [line.replace(b'"', b"").replace(b"x, ", b"") for line in QUOTED]


@pytest.mark.parametrize(
    ("lines", "number", "line"),
    [
        (BARE, 9_000, b'1,2,5" disc,3\n'),
        (BARE, 9_000, b'1,2,"5" disc",3\n'),
        (BARE, 9_000, b"1,2,caf\xe9,3\n"),
        (BARE, 0, b"\xef\xbb\xbf1,2,x,3\n"),
        (BARE, 9_000, b" \n"),
        (QUOTED, 9_000, b"\n"),
        (QUOTED, 9_000, b" \r\n"),
        (QUOTED, 0, b" \n"),
        (QUOTED, 9_000, b'"1","2","caf\xe9","3"\n'),
        (QUOTED, 9_000, b'1,2,5" disc,3\n'),
        (QUOTED, 9_000, b'"1", "2",x,"3"\n'),
        (QUOTED, 9_000, b'"1","2","5" disc","3"\n'),
        ([line.replace(b",", b"::") for line in BARE], 9_000, b'1::2::5" disc::3\n'),
        ([line.replace(b",", b"::") for line in BARE], 9_000, b"1::2::\x1f::3\n"),
        ([line.replace(b",", b"\r") for line in BARE], 9_000, b'1\r"2"\rx\r3\n'),
    ],
)
@pytest.mark.parametrize("times", [1, 3])
def test_odd_record_alone_is_split_by_python(
    lines: list[bytes], number: int, line: bytes, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An odd record costs its neighbourhood a split in Python, not the block; the columns are the same."""
    lines = lines.copy()
    for repeat in range(times):
        lines.insert(number + 5_000 * repeat, line)
    separator = next(mark for mark in ("::", "\r", ",") if mark.encode() in lines[1])
    count, records = 0, text_module._Splitter.records

    def counted(*arguments: Any) -> Any:
        nonlocal count
        for record in records(*arguments):
            count += 1
            yield record

    def outcome() -> Any:
        users, items, moments = columns_of(b"".join(lines), separator, ["u", "i", "note", "t"], [0, 1, 3])
        return users, items, moments.tolist()

    monkeypatch.setattr(text_module._Splitter, "records", counted)
    result = outcome()
    assert count < 2_000 * times
    monkeypatch.setattr(text_module._TextReader, "_read_plain", lambda self, text, quoted: False)
    assert outcome() == result
    assert count > 20_000


def test_text_that_is_not_utf8_in_a_column_that_is_read() -> None:
    """The error names its line, whatever the other columns hold; U+FFFD of the file's own is text."""
    body = "".join(f"{n},\ufffd,x\n" for n in range(3_000)).encode() + b"1,2,\xe9\n"
    assert columns_of(body, ",", ["u", "i", "note"], [0, 1])[1] == ["\ufffd"] * 3_000 + ["2"]
    with pytest.raises(DataError, match=r"line 3002, column 'i': 'b\\xe9' is not UTF-8"):
        columns_of(body + b"1,b\xe9,x\n", ",", ["u", "i", "note"], [0, 1])


@pytest.mark.parametrize("text", ["1e-400", "-0.001e-330", "1e400"])
def test_times_beyond_a_float(text: str) -> None:
    """A time that would become zero or infinite is none; zero itself is one."""
    assert columns_of(b"1,2,0e-400\n1,2,-0.0\n", ",", ["u", "i", "t"], [0, 1, 2])[2].tolist() == [0, 0]
    with pytest.raises(DataError, match=f"line 2, column 't': '{text}' is not a timestamp"):
        columns_of(f"1,2,1e-300\n1,2,{text}\n".encode(), ",", ["u", "i", "t"], [0, 1, 2])


def test_fields_in_messages() -> None:
    """Printable ASCII as it is, every other byte as two hex digits, 60 bytes at most."""
    with pytest.raises(DataError) as caught:
        columns_of(b"1;2;a\\b\t'\x7f\xc3\xa9\n", ";", ["u", "i", "t"], [0, 1, 2])
    assert r"column 't': 'a\b\x09'\x7f\xc3\xa9' is not" in str(caught.value)
    with pytest.raises(DataError, match="'" + "x" * 60 + "…' is not"):
        columns_of(b"1;2;" + b"x" * 61 + b"\n", ";", ["u", "i", "t"], [0, 1, 2])
