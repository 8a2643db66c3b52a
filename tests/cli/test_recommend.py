"""fastseq recommend: tables in files, and histories from files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import pytest

from .test_commands import MODELS, answer, here, refusal, write_config, write_data

WITH_FLOATS = {"score": pl.Float32}
READERS = {
    "csv": lambda path: pl.read_csv(path, schema_overrides=WITH_FLOATS),
    "tsv": lambda path: pl.read_csv(path, schema_overrides=WITH_FLOATS, separator="\t"),
    "parquet": pl.read_parquet,
    "jsonl": lambda path: pl.read_ndjson(path, schema_overrides=WITH_FLOATS),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three models trained; a user of one event, whom the split leaves out."""
    folder = tmp_path_factory.mktemp("cli")
    write_data(folder / "data.csv")
    with (folder / "data.csv").open("a") as file:
        file.write("short,i1,1\n")
    assert here("train", write_config(folder, **MODELS), folder=folder)[0] == 0
    return folder


def rows_of(answers: list[dict[str, Any]]) -> list[tuple[Any, Any, float, int]]:
    """What --json says without --out, as the rows of the table."""
    return [
        (each["for"], item, score, rank)
        for each in answers
        for rank, (item, score) in enumerate(zip(each["items"], each["scores"], strict=True), start=1)
    ]


def table(*arguments: object, folder: Path, file: Path) -> list[tuple[Any, ...]]:
    """The rows that --out writes, and nothing beside them."""
    code, out, err = here(*arguments, "--out", file, folder=folder)
    assert code == 0 and out == "", err
    assert str(file) in err.replace("\n", "") and [each.name for each in file.parent.iterdir()] == [file.name]
    frame = READERS[file.suffix[1:]](file)
    assert frame.columns == ["user", "item", "score", "rank"]
    return frame.rows()


@pytest.mark.parametrize(("model", "extension"), [("SASRec", "csv"), ("GRU4Rec", "parquet"), ("Caser", "jsonl")])
def test_a_table_has_what_the_screen_has(model: str, extension: str, folder: Path, tmp_path: Path) -> None:
    """For all users, and for some."""
    ask = ("recommend", f"runs/data/{model}", "-k", 4)
    known = [f"u{i}" for i in range(80)]
    users = sorted(known) if model == "Caser" else sorted([*known, "short"])
    want = rows_of(answer(*ask, *(f"--user={user}" for user in users), folder=folder))
    assert table(*ask, folder=folder, file=tmp_path / f"all.{extension}") == want
    some = ("--user", "u7", "--sample", 2, "--include-seen")
    (tmp_path / "some").mkdir()
    got = table(*ask, *some, folder=folder, file=tmp_path / "some" / f"t.{extension}")
    assert got == rows_of(answer(*ask, *some, folder=folder)) and len(got) == 12


def test_caser_says_whom_it_leaves_out(folder: Path, tmp_path: Path) -> None:
    ask = ("recommend", "runs/data/Caser", "--out", tmp_path / "t.csv")
    assert "left out: 1 users whom this Caser does not know; --mean-user" in here(*ask, folder=folder)[2]
    said = answer(*ask, "--mean-user", "--overwrite", folder=folder)
    assert said == {"out": str(tmp_path / "t.csv"), "users": 81, "rows": 810}
    (short,) = answer("recommend", "runs/data/Caser", "-u", "short", "--mean-user", folder=folder)
    rows = READERS["csv"](tmp_path / "t.csv").filter(pl.col("user") == "short").rows()
    assert rows == rows_of([short])


def test_words_go_into_a_table_too(folder: Path, tmp_path: Path) -> None:
    ask = ("recommend", "runs/data/GRU4Rec", "-k", 2, "--history", "i1,i2", "--user", "u1")
    assert table(*ask, folder=folder, file=tmp_path / "t.tsv") == rows_of(answer(*ask, folder=folder))


def test_integers_stay_integers(tmp_path: Path) -> None:
    rows = [f"{user},{(user * 7 + step) % 20},{step}" for user in range(100, 130) for step in range(8)]
    (tmp_path / "data.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n")
    config = write_config(tmp_path, Caser=MODELS["Caser"] | {"epochs": 1})
    assert here("train", config, folder=tmp_path)[0] == 0
    ask = ("recommend", "runs/data/Caser", "-k", 3)
    (tmp_path / "out").mkdir()
    got = table(*ask, folder=tmp_path, file=tmp_path / "out" / "t.parquet")
    assert got == rows_of(answer(*ask, "--sample", 30, folder=tmp_path)) and got[0][0] == 100
    mixed = (*ask, "--user", 105, "--history", "3,4", "--mean-user", "--overwrite")
    users = [row[0] for row in table(*mixed, folder=tmp_path, file=tmp_path / "out" / "t.parquet")]
    assert users == ["105"] * 3 + ["3,4"] * 3
    # One word among the ids makes a column of text; its numbers are the catalogue's all the same.
    (tmp_path / "new.csv").write_text("user,item,time\n105,3,1\n105,4,2\n105,new,3\n")
    given = (*ask, "--histories", "new.csv")
    assert "1 of the histories' items, in 1 events," in refusal(*given, folder=tmp_path)
    (row,) = answer(*given, "--skip-unknown", folder=tmp_path)
    (want,) = answer(*ask, "--histories", "same.csv", folder=_written(tmp_path, "same.csv", "105,3,1\n105,4,2\n"))
    assert row == want and row["for"] == 105


def _written(folder: Path, name: str, rows: str) -> Path:
    (folder / name).write_text("user,item,time\n" + rows)
    return folder


def test_histories_from_a_file(folder: Path, tmp_path: Path) -> None:
    """Rows in any order with times; also ids with blanks and commas, which only a table can name."""
    _written(tmp_path, "new.csv", '"a, b",i2,20\n"a, b",i1,10\nalone,i3,1\n')
    frame = pl.DataFrame({"who": ["a, b", "a, b", "alone"], "what": ["i1", "i2", "i3"]})
    frame.write_parquet(tmp_path / "new.parquet")
    (tmp_path / "new.tsv").write_text("a, b\ti1\na, b\ti2\nalone\ti3\n")
    ask = ("recommend", "runs/data/SASRec", "-k", 3)
    want = answer(*ask, "--history", "i1,i2", "--history", "i3", folder=folder)
    want = [each | {"for": name} for each, name in zip(want, ("a, b", "alone"), strict=True)]
    for file, columns in (
        ("new.csv", ()),
        ("new.parquet", ("--columns", "who,what")),
        ("new.tsv", ("--columns", "0,1")),
    ):
        given = (*ask, "--histories", tmp_path / file, *columns)
        assert answer(*given, folder=folder) == want, file
        (tmp_path / f"out-{file}").mkdir()
        assert table(*given, folder=folder, file=tmp_path / f"out-{file}" / "t.parquet") == rows_of(want), file


def test_items_with_commas_are_named_in_a_file(tmp_path: Path) -> None:
    rows = [f'u{user},"{(user + step) % 12}, {step % 2}",{step}' for user in range(30) for step in range(8)]
    _written(tmp_path, "data.csv", "\n".join(rows) + "\n")
    assert here("train", write_config(tmp_path, GRU4Rec=MODELS["GRU4Rec"] | {"epochs": 1}), folder=tmp_path)[0] == 0
    _written(tmp_path, "new.csv", 'me,"3, 1",1\nme,"4, 0",2\n')
    (got,) = answer("recommend", "runs/data/GRU4Rec", "--histories", "new.csv", "-k", 22, folder=tmp_path)
    assert {"3, 1", "4, 0"} & set(got["items"]) == set() and len(got["items"]) == 22


def test_unknown_items_are_counted_and_named(folder: Path, tmp_path: Path) -> None:
    _written(tmp_path, "new.csv", "me,i1,1\nme,x,2\nme,y,3\nyou,x,1\n")
    ask = ("recommend", "runs/data/GRU4Rec", "-k", 2, "--histories", tmp_path / "new.csv")
    unknown = "2 of the histories' items, in 3 events, are not in the catalogue of 30 items, whose ids are strings:"
    err = refusal(*ask, folder=folder)
    assert f"{unknown} 'x', 'y'; --skip-unknown" in err and "new.csv" in err
    assert unknown in refusal(*ask, "--out", tmp_path / "t.csv", folder=folder) and not (tmp_path / "t.csv").exists()
    want = answer("recommend", "runs/data/GRU4Rec", "-k", 2, "--history", "i1", "--history", "", folder=folder)
    want = [each | {"for": name} for each, name in zip(want, ("me", "you"), strict=True)]
    with pytest.warns(UserWarning, match="1 of 2 histories without an event"):
        code, out, err = here(*ask, "--skip-unknown", "--json", folder=folder)
    assert code == 0 and json.loads(out) == want and f"left out: {unknown} 'x', 'y'" in " ".join(err.split())
    (tmp_path / "out").mkdir()
    with pytest.warns(UserWarning, match=r"1 of 2 histories without an event \(user 'you'\)"):
        assert table(*ask, "--skip-unknown", folder=folder, file=tmp_path / "out" / "t.csv") == rows_of(want)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "t.xlsx"), "known are .csv, .tsv, .parquet, .jsonl"),
        (("--out", "nowhere/t.csv"), "there is no folder"),
        (("--out", "data.csv"), "data.csv: exists; --overwrite"),
        (("--overwrite",), "--overwrite is of --out"),
        (("--columns", "a,b", "-u", "u1"), "--columns are those of --histories"),
        (("--histories", "data.csv", "--sample", 1), "--histories stands alone"),
        (("--histories", "data.csv", "--columns", "user"), "expected USER,ITEM"),
        (("--histories", "data.csv", "--columns", "who,item"), "no column 'who'"),
        (("--histories", "nowhere.csv"), "nowhere.csv"),
    ],
)
def test_mistakes_are_named(arguments: tuple[object, ...], message: str, folder: Path) -> None:
    before = (folder / "data.csv").read_bytes()
    assert message in refusal("recommend", "runs/data/SASRec", *arguments, folder=folder)
    assert (folder / "data.csv").read_bytes() == before


def test_a_bad_file_name_ends_before_the_model_is_read(folder: Path) -> None:
    with mock.patch("fastseq.cli.recommend.load_model", side_effect=AssertionError):
        assert "names no format" in refusal("recommend", "runs/data/SASRec", "--out", "table", folder=folder)


def test_ctrl_c_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    """In the middle of writing: a slow model, of small blocks."""
    program = """
import signal
import sys
import time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests in the background has it ignored
from fastseq.models import recommendations
recommendations.ROWS_PER_BLOCK, real = 1, recommendations.one_pass
def slow(*arguments):
    time.sleep(0.3)
    return real(*arguments)
recommendations.one_pass, recommendations.HISTORIES_PER_PASS = slow, 4
sys.argv = ["fastseq", *sys.argv[1:]]
from fastseq.cli import main
main()
"""
    file = tmp_path / "t.parquet"
    ask = [sys.executable, "-c", program, "recommend", "runs/data/SASRec", "--out", str(file)]
    process = subprocess.Popen(ask, cwd=folder, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".t.parquet.*.tmp/*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"interrupted; {file} was not written" in err
    assert not list(tmp_path.iterdir())


def test_a_bar_counts_the_users_on_a_terminal(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastseq.cli import progress

    monkeypatch.setattr(type(progress.stderr), "is_terminal", property(lambda self: True))
    _, _, err = here("recommend", "runs/data/GRU4Rec", "--out", tmp_path / "t.csv", folder=folder)
    assert "GRU4Rec, users" in err and "81/81" in err
