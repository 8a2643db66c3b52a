"""Readers: every format gives the same tape; bad input is a DataError that says where."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastseq.data import files as files_module
from fastseq.data import text as text_module
from fastseq.data.interactions import Interactions, build_interactions
from fastseq.data.readers import FORMATS, from_sequences, read_histories, read_interactions, read_split
from fastseq.errors import DataError
from tests import run_python

ROWS = [(7, 30, 5), (-2, 10, 1), (7, 20, 5), (7, 10, 2), (-2, 30, 0), (10, 10, 9)]
WANT = build_interactions(*zip(*ROWS, strict=True))
DAY = 86_400_000_000


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def table(separator: str, header: str = "user_id,item_id,timestamp", end: str = "\n") -> str:
    lines = [header, *(",".join(map(str, row)) for row in ROWS)]
    return end.join(lines).replace(",", separator) + end


def same(data: Interactions, want: Interactions) -> bool:
    times = [None if d.timestamps is None else (d.timestamps.dtype, d.timestamps.tolist()) for d in (data, want)]
    return data.data_hash == want.data_hash and times[0] == times[1]


# ── every format ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("a.csv", table(","), {}),
        ("a.csv", table(";"), {}),
        ("a.CSV", table("\t"), {}),
        ("a.csv", table("::"), {"separator": "::"}),
        ("a.csv", table(" "), {"separator": " "}),
        ("a.csv", "\ufeff" + table(",", end="\r\n"), {}),
        ("a.csv", table(",", header="\n\nuser_id, item_id ,timestamp").rstrip("\n"), {}),
        ("a.csv", table('","').replace("\n", '"\n"').join('""')[:-2] + "\n", {}),
        ("a.tsv", table("\t"), {}),
        ("a.inter", table("\t", header="user_id:token,item_id:token,timestamp:float"), {}),
        ("a.txt", table("\t", header="user_id:token,item_id:token,timestamp:float"), {}),
        ("a.txt", table("|"), {}),
        ("a.csv", table(",", header="u,i,t"), {"user": "u", "item": "i", "timestamp": "t"}),
        (
            "ratings.dat",
            table("::").split("\n", 1)[1],
            {"format": "csv", "separator": "::", "columns": ["user_id", "item_id", "timestamp"]},
        ),
        (
            "a.csv",
            "rating,timestamp,note,item_id,user_id\n" + "".join(f'1.5,{t},"x, ""y""\nz",{i},{u}\n' for u, i, t in ROWS),
            {},
        ),
    ],
)
def test_tables(tmp_path: Path, name: str, text: str, arguments: dict[str, Any]) -> None:
    assert same(read_interactions(write(tmp_path, name, text), **arguments), WANT)


def parquet() -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame({"user_id": [1, 1, 2], "item_id": ["a", "b", "c"]}).write_parquet(buffer)
    return buffer.getvalue()


def packed(path: Path, text: bytes) -> Path:
    """A file with the bytes packed as its name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem, text)
    elif path.suffix == ".zst":
        pyarrow = pytest.importorskip("pyarrow")
        with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(text)
    else:
        path.write_bytes({".gz": gzip, ".bz2": bz2, ".xz": lzma}[path.suffix].compress(text))  # type: ignore[attr-defined]
    return path


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zip", "zst"])
def test_packed_files(tmp_path: Path, ending: str) -> None:
    text = ("\ufeff" + table(",")).encode()
    assert same(read_interactions(packed(tmp_path / f"a.csv.{ending}", text)), WANT)
    assert same(read_interactions(packed(tmp_path / f"a.txt.{ending}", table("|").encode())), WANT)
    path = packed(tmp_path / f"bad.csv.{ending}", text + b"1,2,x\n")
    with pytest.raises(DataError, match=f"bad.csv.{ending}, line 8, column 'timestamp': 'x'"):
        read_interactions(path)
    whole = packed(tmp_path / f"cut.csv.{ending}", b"user_id,item_id,timestamp\n" + b"1,2,3\n" * 50_000).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no such thing", b""):
        with pytest.raises(DataError, match=r"cut.csv.*(cannot be unpacked|no events)"):
            read_interactions(write(tmp_path, f"cut.csv.{ending}", damaged))


def test_packed_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", "1")
        archive.writestr("b.csv", "1")
    with pytest.raises(DataError, match=r"two\.zip: the archive holds 2 files, expected one"):
        read_interactions(tmp_path / "two.zip")
    with pytest.raises(DataError, match="packed Parquet"):
        read_interactions(packed(tmp_path / "a.parquet.gz", parquet()))
    monkeypatch.setattr(files_module, "ZSTD", {"no_such_module": None})
    with pytest.raises(DataError, match=r"a.zst: zst needs .*pip install zstandard, or unpack it"):
        read_interactions(write(tmp_path, "a.zst", b""))


def test_columns_have_numbers_without_a_header(tmp_path: Path) -> None:
    body = table(",").split("\n", 1)[1]
    numbers: dict[str, Any] = {"user": 0, "item": 1, "timestamp": 2, "header": False}
    for name, separator in (("u.data", "\t"), ("ratings.dat", "::"), ("a.csv", ","), ("a.tsv", "\t"), ("a.csv", "|")):
        path = write(tmp_path, name, "\ufeff\n" + body.replace(",", separator))
        assert same(read_interactions(path, **numbers), WANT)
    path = write(tmp_path, "a.csv", body)
    swapped = read_interactions(path, header=False, user=1, item=0, timestamp=None)
    assert swapped.history(30) == [7, -2]
    for arguments, message in (
        ({"timestamp": 3}, "timestamp is column 3, and the first line has columns 0 to 2"),
        ({"user": "user_id"}, "user is 'user_id', give its number"),
        ({"header": True}, "no column 0.*header=False"),
        ({"format": "inter"}, "header=False, separator and columns are for"),
    ):
        with pytest.raises(DataError, match=message):
            read_interactions(path, **{**numbers, **arguments})
    with pytest.raises(DataError, match="line 1, column '1': the id is missing"):
        read_interactions(write(tmp_path, "a.csv", "1,,3\n"), **numbers)
    latin = write(tmp_path, "a.dat", b"7::caf\xe9::30::5\n7::x::20::6\n")
    assert read_interactions(latin, user=0, item=2, timestamp=3, header=False).history(7) == [30, 20]
    with pytest.raises(DataError, match="the first line looks like data: pass header=False"):
        read_interactions(write(tmp_path, "a.csv", body))
    frame = pd.DataFrame(ROWS)
    assert same(read_interactions(frame, user=0, item=1, timestamp=2), WANT)
    with pytest.raises(DataError, match="no column 'user_id'"):
        read_interactions(frame)
    with pytest.raises(DataError, match=r"no column '0'; did you mean 0\? \(columns: 0, 1, 2\)"):
        read_interactions(frame, user="0")


def test_several_files_and_folders(tmp_path: Path) -> None:
    """Parts of any kind are one below the other; ids are text where those of one part are."""
    columns = dict(zip(("user_id", "item_id", "timestamp"), map(list, zip(*ROWS, strict=True)), strict=True))
    frame = pl.DataFrame(columns)
    for name in ("_SUCCESS", ".hidden"):
        write(tmp_path, name, "")
    (tmp_path / "day=2").mkdir()
    frame[:2].write_parquet(tmp_path / "day=1.parquet")
    frame[:0].write_parquet(tmp_path / "day=1b.parquet")
    frame[2:].cast(pl.Int32).write_parquet(tmp_path / "day=2" / "b.parquet")
    assert same(read_interactions(tmp_path), WANT)
    frame[2:].write_csv(tmp_path / "b.csv")
    assert same(read_interactions([tmp_path / "day=1.parquet", str(tmp_path / "b.csv")]), WANT)
    frame[2:].with_columns(item_id=pl.format("i{}", "item_id")).write_csv(tmp_path / "b.csv")
    mixed = read_interactions([tmp_path / "day=1.parquet", tmp_path / "b.csv"])
    assert mixed.history(7) == ["i10", "30", "i20"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none: the folder has no files"):
        read_interactions(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        read_interactions([tmp_path / "x.csv"])
    frame.with_columns(pl.col("timestamp") + 1_717_171_717_000).write_csv(tmp_path / "ms.csv")
    frame.with_columns(pl.col("timestamp") + 1_717_171_717).write_csv(tmp_path / "s.csv")
    with pytest.warns(UserWarning, match="times in seconds and in milliseconds"):
        read_interactions([tmp_path / "ms.csv", tmp_path / "s.csv"])


def test_declared_types_of_ids(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "user_id,item_id\n1,007\n1,7\n1,10\n")
    assert read_interactions(path, timestamp=None).history(1) == ["007", "7", "10"]
    as_int = read_interactions(path, timestamp=None, id_types={"item": "int", "user": "str"})
    assert as_int.history("1") == [7, 7, 10]
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": [10, 9]})
    assert read_interactions(frame, timestamp=None, id_types={"item": "str"}).history(1) == ["10", "9"]
    with pytest.raises(DataError, match="column 'item_id' is to be of integers, and 'a' is none"):
        read_interactions(
            write(tmp_path, "a.csv", "user_id,item_id\n1,a\n1,7\n"), timestamp=None, id_types={"item": "int"}
        )
    with pytest.raises(DataError, match="id_types is"):
        read_interactions(path, id_types={"item": "float"})


def test_data_that_is_split_already(tmp_path: Path) -> None:
    header = "user_id,item_id,timestamp\n"
    train = write(tmp_path, "train.csv", header + "2,20,2\n1,11,2\n1,10,1\n3,30,1\n")
    validation = pl.DataFrame({"user_id": [1], "item_id": [12], "timestamp": [3]})
    test = write(tmp_path, "test.csv", header + "2,21,9\n1,14,5\n1,13,4\n4,40,1\n")
    split = read_split(train, validation, test)
    data = split.interactions
    assert [data.history(user) for user in (1, 2, 3, 4)] == [[10, 11, 12, 13, 14], [20, 21], [30], [40]]
    assert split.train_stop.tolist() == [2, 6, 8, 8] and split.validation_stop.tolist() == [3, 6, 8, 8]
    assert data.timestamps is not None and data.timestamps.tolist() == [1, 2, 3, 4, 5, 2, 9, 1, 1]
    assert split.strategy == "given" and split.part("test").users.tolist() == [0, 1]
    untimed = read_split(train, None, test, timestamp=None)
    assert untimed.interactions.history(1) == [11, 10, 14, 13] and untimed.interactions.timestamps is None
    assert untimed.train_stop.tolist() == untimed.validation_stop.tolist()
    write(tmp_path, "test.csv", header + "1,14,1\n")
    with pytest.warns(
        UserWarning, match="1 times an event of a later part is older .*first: user 1.*training part alone"
    ):
        late = read_split(train, None, test)
    assert late.interactions.history(1) == [10, 11, 14] and not late.in_time
    with pytest.raises(DataError, match="test is a list, expected a file or a data frame"):
        read_split(train, None, [[1, 2]])


def test_string_ids_in_every_source(tmp_path: Path) -> None:
    users, items = ["b", "a", "b", "é", "a b"], ["10", "9", "9", "10", "😀"]
    want = build_interactions(users, items)
    frame = pl.DataFrame({"user_id": users, "item_id": items})
    frame.write_csv(tmp_path / "a.csv")
    frame.write_parquet(tmp_path / "a.parquet")
    sources = [
        tmp_path / "a.csv",
        tmp_path / "a.parquet",
        frame,
        frame.with_columns(pl.col("user_id").cast(pl.Categorical)),
        pd.DataFrame({"user_id": users, "item_id": items}),
        pd.DataFrame({"user_id": pd.Categorical(users), "item_id": np.array(items, object)}),
    ]
    for source in sources:
        assert same(read_interactions(source, timestamp=None), want), source


def test_text_without_header(tmp_path: Path) -> None:
    pairs = write(tmp_path, "pairs.txt", "5 1\n5 2\n\n  9\t1  \r\n5 3")
    want = build_interactions([5, 5, 9, 5], [1, 2, 1, 3])
    assert same(read_interactions(pairs), want)
    assert same(read_interactions(pairs, format="pairs"), want)
    sequences = write(tmp_path, "sequences.txt", "3 1 2\n\n4\nb")
    want = build_interactions([1, 1, 1, 3, 4], ["3", "1", "2", "4", "b"])
    assert same(read_interactions(sequences, format="sequences"), want)
    users = write(tmp_path, "users.txt", "3 1 2\n\n4\nb 1 \r\n3 1")
    want = build_interactions(["3", "3", "b", "3"], [1, 2, 1, 1])
    assert same(read_interactions(users, format="user_sequences"), want)


RING = [f"{n} {n + 1} {n + 2}{' 7' * (n % 2)}\n" for n in range(1, 31)]


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ("".join(f"{n} {n * 7 % 31} 5{' 6' * (n % 3)}\n" for n in range(1, 31)), "user_sequences"),
        ("u1 11 12 13\nu2 12 15\n", "user_sequences"),
        ("1 a b c\n2 a\n", "user_sequences"),
        ("7 1 2\n3 4\n7 2 5 6\n", "sequences"),
        ("1 11 12 13\n2 12 15\n", None),
        ("5 11 12\n5 11 12 13\n9 12 15\n", None),
        ("a b\nb\n", None),
        ("".join(RING), None),
    ],
)
def test_whether_lines_start_with_a_user(tmp_path: Path, text: str, format: str | None) -> None:
    path = write(tmp_path, "a.txt", text)
    if format is None:
        with pytest.raises(DataError, match=r"not clear.*format='user_sequences' or format='sequences'"):
            read_interactions(path)
    else:
        assert same(read_interactions(path), read_interactions(path, format=format))


def test_in_memory() -> None:
    assert same(from_sequences([[3, 1], [], [2]]), build_interactions([0, 0, 2], [3, 1, 2]))
    by_user = {"x": ["b", "a", "b"], "w": ("c",)}
    assert same(from_sequences(by_user), build_interactions(["x", "x", "x", "w"], ["b", "a", "b", "c"]))
    assert same(read_interactions(by_user), from_sequences(by_user))


def test_users_are_kept_where_they_are_names() -> None:
    """Keys and indexes are users, in whatever holds the histories; places are where there are none."""
    frame = pd.DataFrame({"user_id": [7, 9, 7], "item_id": [1, 1, 2], "t": [5, 4, 6]})
    groups = frame.groupby("user_id")["item_id"]
    want = build_interactions([7, 7, 9], [1, 2, 1])
    for source in (groups.agg(list), groups, dict(list(groups)), {7: np.array([1, 2]), 9: (i for i in [1])}):
        assert same(read_interactions(source), want)
    assert same(read_interactions(frame.set_index("user_id"), timestamp="t"), read_interactions(frame, timestamp="t"))
    histories = [[1, 2], [1]]
    for source in (pd.Series(histories), pl.Series(histories), (np.array(history) for history in histories)):
        assert same(read_interactions(source), build_interactions([0, 0, 1], [1, 2, 1]))
    for refused in ([frame, frame], {1: {2: 3}}, {1: {2, 3}}, [[1, [2]]], [[1, pd.NA]], groups.agg(list).reset_index()):
        with pytest.raises(DataError) as caught:
            read_interactions(refused, timestamp=None)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"explode\('item_id'\)"):
        read_interactions(pl.from_pandas(frame).group_by("user_id").agg("item_id"), timestamp=None)


def test_times(tmp_path: Path) -> None:
    def times(*texts: str) -> np.ndarray:
        lines = "".join(f"1,{i},{text}\n" for i, text in enumerate(texts))
        result = read_interactions(write(tmp_path, "a.csv", "user_id,item_id,timestamp\n" + lines))
        assert result.timestamps is not None
        return result.timestamps

    assert times("3", "9007199254740993").tolist() == [3, 2**53 + 1]
    assert times("3", "4.5", "1e3").tolist() == [3.0, 4.5, 1000.0]
    assert times("1970-01-01", "1970-01-02 00:00:01.5").tolist() == [0, DAY + 1_500_000]
    stamps = ["1899-03-01T00:00:00", "2000-02-29T23:59:59.123456", "2024-12-31 12:30+05:30", "2100-03-01T01:02:03Z"]
    want = pd.to_datetime(pd.Series(stamps), utc=True, format="ISO8601").astype("datetime64[us, UTC]").astype("int64")
    assert times(*stamps).tolist() == want.tolist()
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": ["1970-01-02", "1970-01-03"]})
    for cast in (pl.String, pl.Date, pl.Datetime("ms")):
        column = pl.col("timestamp") if cast is pl.String else pl.col("timestamp").str.to_date().cast(cast)
        dated = frame.with_columns(column)
        for source in (dated, dated.to_pandas()):
            result = read_interactions(source)
            assert result.timestamps is not None and result.timestamps.tolist() == [DAY, 2 * DAY]
    zoned = frame.to_pandas()
    zoned["timestamp"] = pd.to_datetime(zoned["timestamp"]).dt.tz_localize("Asia/Tokyo")
    result, offset = read_interactions(zoned), 9 * DAY // 24
    assert result.timestamps is not None and result.timestamps.tolist() == [DAY - offset, 2 * DAY - offset]


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_times_whose_order_is_lost(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one record cannot show is seen across blocks, with its line."""
    monkeypatch.setattr(text_module, "BLOCK", block)

    def read(*times: object) -> Interactions:
        lines = "".join(f"1,{number},{time}\n" for number, time in enumerate(times))
        return read_interactions(write(tmp_path, "a.csv", "user_id,item_id,timestamp\n" + lines))

    with pytest.warns(
        UserWarning, match=r"a\.csv, line 4, column 'timestamp': 1717171717000 looks like milli"
    ) as caught:
        read(1717171717, 5, 1717171717000, 1717171717001)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"a\.csv, line 3, column 'timestamp': .* is a float beyond 2\^53"):
        read("0.5", "1717171717171717171.0")
    for times in ((1.5, 2**53, 2**53 + 1), (1, 2**53 + 1, "1e3")):
        with pytest.raises(DataError, match=r"line 4, column 'timestamp': with .* floats and integers beyond 2\^53"):
            read(*times)


def test_blanks_around_ids_do_not_count(tmp_path: Path) -> None:
    """One item, however often blanks stand around it, and whatever holds it."""
    items = ["a", " a", "a\t", " a ", "b c"]
    want = build_interactions(["u"] * 5, ["a", "a", "a", "a", "b c"])
    frame = pl.DataFrame({"user_id": ["u", " u"] * 2 + ["u"], "item_id": items})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_csv(tmp_path / "a.csv")
    frame.write_csv(tmp_path / "quoted.csv", quote_style="always")
    categorical = frame.cast(pl.Categorical)
    files = [tmp_path / name for name in ("a.parquet", "a.csv", "quoted.csv")]
    for source in (*files, frame, categorical, frame.to_pandas(), {"u ": items}):
        assert same(read_interactions(source, timestamp=None), want), source
    for text in ("", " \t", "nan"):
        blank = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", text]})
        blank.write_csv(tmp_path / "a.csv")
        for source in (tmp_path / "a.csv", blank, blank.to_pandas(), [["a", text]]):
            with pytest.raises(DataError, match=r"(line 3|row 2).*the id is missing"):
                read_interactions(source, timestamp=None)


def test_ids_keep_their_spelling(tmp_path: Path) -> None:
    def ids(*texts: str) -> list[Any]:
        lines = "".join(f"u,{text}\n" for text in texts)
        path = write(tmp_path, "a.csv", "user_id,item_id\n" + lines)
        return read_interactions(path, timestamp=None).history("u")

    assert ids("9007199254740993", "-9223372036854775808", '"0"') == [2**53 + 1, -(2**63), 0]
    assert ids("7", "007", "-0", "1.0") == ["7", "007", "-0", "1.0"]
    assert ids("1", "9223372036854775808", "1") == ["1", "9223372036854775808", "1"]
    assert ids(' a "b" ', '"c, ""d"" "', "e") == ['a "b"', 'c, "d"', "e"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Reading holds a block and, per event, at most 24 bytes of columns and 32 of the tape."""
    path = tmp_path / "a.csv"
    n, rng = 2_000_000, np.random.default_rng(0)
    columns = {"user_id": rng.integers(2**40, 2**40 + 9_999, n), "item_id": rng.integers(999, size=n)}
    pl.DataFrame({**columns, "timestamp": rng.integers(2**40, size=n)}).write_csv(path)
    code = """
import re, sys
from pathlib import Path
import polars
from fastseq.data import read_interactions
def peak():  # KiB of this program alone: ru_maxrss starts at that of the process that started it
    return int(re.search(r"VmHWM:\\s+([0-9]+)", Path("/proc/self/status").read_text())[1])
before = peak()
read_interactions(sys.argv[1])
print(peak() - before)
"""
    done = run_python("-c", code, path)
    assert int(done.stdout) * 1024 < 56 * n + 12 * text_module.BLOCK, f"{int(done.stdout) / 1024:.0f} MiB"


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────────

HEADER = "user_id,item_id,timestamp\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "no events: the file is empty"),
        ("a.txt", "", "no events: the file is empty"),
        ("a.csv", "\n\n", "no events: the file is empty"),
        ("a.csv", HEADER, "no events: nothing but a header"),
        ("a.csv", "user,item_id,timestamp\n1,2,3\n", "no column 'user_id'; did you mean 'user'.*user=…"),
        ("a.csv", "user_id,item_id,time\n1,2,3\n", "no column 'timestamp'; did you mean 'time'.*timestamp=None"),
        ("a.csv", "a,b,c\n1,2,3\n", r"no column 'user_id' \(columns: 'a', 'b', 'c'\)"),
        ("a.tsv", HEADER + "1,2,3\n", r"split at '\\t', .*separated by ','\? Set separator= .*reader.sep"),
        ("a.csv", "user_id::item_id::timestamp\n1::2::3\n", r"separated by '::'\? Set separator="),
        ("a.csv", "1::2::3\n4::5::6\n", "the first line looks like data: pass header=False"),
        ("a.tsv", "1,2,3\n4,5,6\n", "the first line looks like data: pass header=False"),
        ("a.csv", "u;i\n1;2\n", r"split at ',', .* separated by ';'\? Set separator="),
        ("a.csv", "user_id,item_id,item_id,timestamp\n1,2,3,4\n", "column 'item_id' occurs 2 times"),
        ("a.csv", HEADER + "1,2,3\n\n1,2,x\n", "line 4, column 'timestamp': 'x' is not a timestamp"),
        ("a.csv", HEADER + "1,2,3\n1,2,\n", "line 3, column 'timestamp': the timestamp is missing"),
        ("a.csv", HEADER + "1,2,NaN\n", "line 2, column 'timestamp': the timestamp is missing"),
        ("a.csv", HEADER + "1,2,inf\n", "line 2, column 'timestamp': 'inf' is not a timestamp"),
        ("a.csv", HEADER + "1,2,2020-02-30\n", "line 2, column 'timestamp'"),
        ("a.csv", HEADER + "1,2,2020-02-01\n1,2,5\n", "line 3, column 'timestamp': '5' is not a datetime"),
        ("a.csv", HEADER + "1,2,5\n1,2,2020-02-01\n", "line 3, column 'timestamp': '2020-02-01' is a datetime"),
        ("a.csv", HEADER + "1,2,3\n,2,3\n", "line 3, column 'user_id': the id is missing"),
        ("a.csv", HEADER + "1,nan,3\n", "line 2, column 'item_id': the id is missing"),
        ("a.csv", HEADER + '1,"2\n3",4\n1,2\n', "line 4: 2 fields, expected 3"),
        ("a.csv", HEADER + "1,2,3,4\n", "line 2: 4 fields, expected 3"),
        ("a.csv", HEADER + '1,2,3\n1,"2,3\n', "line 3: a quote opened in this record is never closed"),
        ("a.csv", HEADER.encode() + b"1,\xff\xfe,3\n", r"line 2, column 'item_id': '\\xff\\xfe' is not UTF-8"),
        ("a.csv", HEADER.encode() + b"1,a\0b,3\n", "line 2, column 'item_id'"),
        ("a.csv", HEADER.encode("utf-16"), "line 1: the header is not UTF-8"),
        ("a.csv", HEADER + "1,2,3\n2,2,3\n", "no user has 2 or more events"),
        ("a.txt", "1 2\n1 2 3\n1,2\n", "format is not clear"),
        ("a.txt", "1 2 3\n1 2 3\n", "format is not clear.*'sequences'"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\r", "format is not clear"),
        ("a.parquet", b"PAR1 no more", "not a Parquet file"),
        ("a.parquet", b"", "not a Parquet file"),
        ("a.log", "x\n", "format is not clear from the extension '.log'"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(DataError, match=message) as caught:
        read_interactions(path)
    assert str(caught.value).startswith(str(path))


def test_bad_arguments(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", table(","))
    for arguments, message in (
        ({"format": "cvs"}, "unknown format 'cvs'; pass format= one of 'csv'"),
        ({"separator": ",\n"}, "separator"),
        ({"user": "item_id"}, "must be different columns"),
        ({"format": "pairs", "separator": ","}, "separator and columns are for"),
        ({"columns": ["user_id"]}, "no column 'item_id'"),
    ):
        with pytest.raises(DataError, match=message):
            read_interactions(path, **arguments)  # type: ignore[arg-type]
    for name in ("none.csv", "none.parquet"):
        with pytest.raises(FileNotFoundError):
            read_interactions(tmp_path / name)
    for source in (5, [1, 2], ["ab", "cd"], {"a": "bc"}):
        with pytest.raises(DataError, match="expected"):
            read_interactions(source)
    with pytest.raises(DataError, match="is for files"):
        read_interactions([[1, 2]], format="csv")


# ── fuzzing ──────────────────────────────────────────────────────────────────────────────────────────────────────

ALPHABET = b',|\t| |\n|\r\n|"|\0|\xff|\xc3\xa9|-|.|:|::|\xef\xbb\xbf'.split(b"|")
WORDS = [b"user_id", b"item_id", b"timestamp", b"user_id:token", b"1", b"2", b"07", b"a", b"nan", b"2020-01-01", b"1e5"]
WORDS += [b"9" * 19, b"2020-13-01T99:00", b"PAR1", b"user_id,item_id,timestamp\n1,2,3\n1,2,"]
fuzz = st.binary(max_size=200) | st.lists(st.sampled_from(ALPHABET + WORDS), max_size=40).map(b"".join)


@pytest.mark.filterwarnings("ignore::UserWarning")  # times of any size
@settings(deadline=None, max_examples=400)
@given(
    fuzz, st.sampled_from([*FORMATS, None]), st.sampled_from(["timestamp", None]), st.sampled_from([None, ",", "::"])
)
@example(b'user_id,item_id\n"1\n', "csv", None, None)
@example(b"PAR1" + b"\xff" * 40 + b"PAR1", "parquet", None, None)
def test_any_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    text: bytes,
    format: str | None,
    timestamp: str | None,
    separator: str | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    path.write_bytes(text)
    try:
        data = read_interactions(path, format=format, timestamp=timestamp, separator=separator)
    except DataError as error:
        assert str(error).startswith(str(path))
        return
    assert data.n_events == data.offsets[-1] and data.lengths.min() >= 1 and data.lengths.max() >= 2
    assert set(data.items.tolist()) == set(range(data.n_items))


# ── real data, and without polars ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("ml-1m.txt", (6_040, 3_416, 987_019)),
        ("ml-100k.inter", (943, 1_682, 100_000)),
        ("beauty.txt", (40_226, 54_542, 353_962)),
        ("s3_beauty.txt", (22_363, 12_101, 198_502)),
    ],
)
def test_real_data(shared_data: Path, name: str, counts: tuple[int, int, int]) -> None:
    data = read_interactions(shared_data / name)
    assert (data.n_users, data.n_items, data.n_events) == counts
    if data.timestamps is not None:
        rises = np.diff(data.timestamps) >= 0
        rises[data.offsets[1:-1] - 1] = True  # from one user to the next
        assert rises.all()


def test_without_polars(tmp_path: Path) -> None:
    """Models, ops and the trainer work on lists; a file asks for the extra."""
    code = f"""
import sys
sys.modules["polars"] = sys.modules["pandas"] = None
import fastseq, fastseq.ops
from fastseq.data import leave_one_out, read_interactions
from fastseq.training import Trainer, TrainingOptions
data = read_interactions([[1, 2, 3, 4], [3, 2, 1, 4]])
sizes = {{"embedding_size": 4, "hidden_size": 4, "num_layers": 1, "dropout_prob": 0.1, "max_seq_len": 4}}
training = {{"epochs": 1, "batch_size": 8, "neg_samples": 1, "learning_rate": 0.01, "weight_decay": 0.0}}
model = fastseq.GRU4Rec(sizes | training, {{"n_users": data.n_users, "n_items": data.n_items}})
Trainer(model, leave_one_out(data), TrainingOptions()).fit()
for path in {[str(write(tmp_path, f"a.{end}", table(","))) for end in ("csv", "txt", "parquet")]!r}:
    try:
        read_interactions(path, format="pairs" if path.endswith("txt") else None)
    except ImportError as error:
        assert "pip install 'fastseq-rec[cli]'" in str(error), error
    else:
        raise AssertionError(path)
"""
    run_python("-c", code)


@pytest.mark.parametrize("kind", ["user_sequences", "sequences"])
def test_lines_of_ids_are_separated_by_blanks(tmp_path: Path, kind: Any) -> None:
    """Tabs read as spaces do; commas between numbers are refused, also where blanks stand beside them."""
    text = "1 11 12 13\n2 12 15\n30 11 15\n"
    read = []
    for number, written in enumerate((text, text.replace(" ", "\t"), text.replace(" ", "\t", 1))):
        path = tmp_path / f"{number}.txt"
        path.write_text(written)
        data = read_interactions(path, format=kind)
        read.append([data.user_ids.decode(data.event_users), data.item_ids.decode(data.items)])
    assert read[0] == read[1] == read[2] and len(read[0][0]) == (7 if kind == "user_sequences" else 10)
    for wrong in (text.replace(" ", ","), text.replace(" ", ", "), "1\t11,12\n2\t12,15\n", "1,11 12\n2,12 15\n"):
        path.write_text(wrong)
        with pytest.raises(DataError, match="separated by commas: replace the commas by blanks"):
            read_interactions(path, format=kind)
        with pytest.raises(DataError, match=r"format is not clear.*separate ids by blanks, tabs too"):
            read_interactions(path)


@pytest.mark.parametrize(
    ("source", "arguments", "words"),
    [
        ({"user_id": [1, 1], "item_id": [2, 3]}, {}, "dict of columns"),
        (io.StringIO("user_id,item_id\n1,2\n"), {}, "StringIO that is open"),
        ("d.csv", {"timestamp": ["time"]}, "timestamp is ['time']"),
        ("d.csv", {"columns": "user_id"}, "columns is 'user_id'"),
        ("d.csv", {"id_types": "str"}, "id_types is 'str'"),
    ],
)
def test_what_would_pass_for_histories_or_names_is_refused(source: Any, arguments: Any, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        read_interactions(source, **arguments)


def test_rows_that_look_like_histories_are_warned_of() -> None:
    rows = [(1, 7, 880_000_000), (1, 8, 880_000_100), (2, 9, 880_000_050)]
    for source in (rows, list(zip(*rows, strict=True))):
        with pytest.warns(
            UserWarning, match="lists are histories of item ids, and these look like users, items and times"
        ):
            read_interactions(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_interactions([(1, 7, 9), (2, 880_000_000, 880_000_001)])
        read_interactions([(880_000_001, 7, 880_000_000), (880_000_001, 8, 880_000_100)])


def test_histories_may_have_one_event_each(tmp_path: Path) -> None:
    """In order of time; ids as anywhere."""
    (tmp_path / "new.csv").write_text('user,item,time\nu,"b, c",2\nu,a d,1\nw,a d,7\n')
    given = read_histories(tmp_path / "new.csv", user="user", item="item", timestamp="time")
    assert [given.history(user) for user in ("u", "w")] == [["a d", "b, c"], ["a d"]]
    one = read_histories(pl.DataFrame({"user_id": [7], "item_id": [1]}), timestamp=None)
    assert one.history(7) == [1]
    with pytest.raises(DataError, match="no user has 2 or more events"):
        read_interactions(pl.DataFrame({"user_id": [7], "item_id": [1]}), timestamp=None)
    with pytest.raises(DataError, match="expected a file or a data frame"):
        read_histories([[1, 2]])
    with pytest.raises(DataError, match=r"new\.csv.*no column 'user_id'"):
        read_histories(tmp_path / "new.csv")
