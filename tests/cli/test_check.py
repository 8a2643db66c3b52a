"""``fastseq check``, and what ``fastseq train`` says of its data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fastseq.data import make_demo

from .test_commands import MODELS, answer, here, refusal, write_config

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("--user", "user", "--item", "item", "--timestamp", "time")


def write(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(["user,item,time", *rows]) + "\n")
    return path


def write_sound(path: Path) -> None:
    """60 users with 12 of 30 items each."""
    write(path, [f"u{u},i{(u + 7 * step) % 30},{1000 + step}" for u in range(60) for step in range(12)])


def codes(said: Any) -> set[str]:
    return {finding["code"] for finding in said["findings"]}


def test_sound_data(tmp_path: Path) -> None:
    write_sound(tmp_path / "data.csv")
    said = answer("check", "data.csv", *COLUMNS, folder=tmp_path)
    assert (said["users"], said["items"], said["events"], said["findings"]) == (60, 30, 720, [])
    assert said["split"]["test_targets"] == 60 and said["max_seq_len"] == 200 and said["source"] == "data.csv"
    code, out, err = here("check", "data.csv", *COLUMNS, folder=tmp_path)
    assert code == 0 and "9 – 16\t60\t100.0%" in out and out.endswith("no findings\n") and "History lengths" in err


def test_findings_with_consequence_and_remedy(tmp_path: Path) -> None:
    write_sound(tmp_path / "data.csv")
    with (tmp_path / "data.csv").open("a") as file:
        file.write("u1,1.2E+05,2000\nu1,1.2E+05,2000\nlone,i1,7\n")
    said = answer("check", "data.csv", *COLUMNS, "--max-len", 5, folder=tmp_path)
    assert codes(said) == {
        "item_ids_in_scientific_notation", "duplicates", "ties", "single_event_users", "long_histories", "cold_targets"
    }  # fmt: skip
    code, out, _ = here("check", "data.csv", *COLUMNS, "--max-len", 5, folder=tmp_path)
    assert code == 0
    for finding in said["findings"]:
        (line,) = [line for line in out.splitlines() if finding["what"] in line]
        assert line.startswith(finding["severity"]) and finding["consequence"] in line and finding["remedy"] in line
    code, out, _ = here("check", "data.csv", *COLUMNS, folder=tmp_path, terminal=True)
    assert code == 0 and ("█" * 30 in out or "#" * 30 in out)


def test_a_configuration_has_its_reader_filters_split_and_models(tmp_path: Path) -> None:
    write_sound(tmp_path / "data.csv")
    with (tmp_path / "data.csv").open("a") as file:
        file.write("lone,i1,7\nu1,late,5000\n")
    sections: dict[str, Any] = {"splitter": {"test_splitting": {"strategy": "timestamp_slicing", "timestamp": 1009}}}
    models = {name: {**MODELS[name], "max_seq_len": length} for name, length in (("SASRec", 4), ("Caser", 2))}
    config = write_config(tmp_path, sections, **models)
    said = answer("check", config, folder=tmp_path)
    assert said["max_seq_len"] == 2  # the first model's
    assert codes(said) == {"single_event_users", "cold_targets", "long_histories"}
    (cold,) = [finding for finding in said["findings"] if finding["code"] == "cold_targets"]
    assert cold["examples"] == [{"item": "late"}]
    lengths = [finding for finding in said["findings"] if finding["code"] == "long_histories"]
    assert [finding["severity"] for finding in lengths] == ["warning", "note"]  # Caser's is by design
    assert "max_seq_len = 4 events" in lengths[0]["what"] and "max_seq_len = 2 events" in lengths[1]["what"]
    assert "window_stride: 4" in lengths[0]["consequence"] and "the last 2 alone" in lengths[1]["consequence"]
    filtered = write_config(tmp_path, {**sections, "filtering": {"UserMin": {"min_interactions": 2}}}, **MODELS)
    said = answer("check", filtered, folder=tmp_path)
    assert "single_event_users" not in codes(said) and said["users"] == 60
    assert "no option" in refusal("check", config, "--sep", ",", folder=tmp_path)


def test_users_who_would_be_refused(tmp_path: Path) -> None:
    """As training does: for negatives of each user's own alone."""
    rows = [f"u{user},i{(user + step) % 9},{step}" for user in range(20) for step in range(5)]
    write(tmp_path / "data.csv", rows + [f"all,i{item % 9},{item}" for item in range(14)])
    config = write_config(tmp_path, GRU4Rec=MODELS["GRU4Rec"])
    code, out, err = here("check", config, "--json", folder=tmp_path)
    (found,) = [each for each in json.loads(out)["findings"] if each["code"] == "seen_everything"]
    assert code == 2 and found["severity"] == "error" and found["examples"] == [{"user": "all"}]
    assert "training would refuse these data" in err and "'all'" in refusal("train", config, folder=tmp_path)
    config = write_config(tmp_path, GRU4Rec={**MODELS["GRU4Rec"], "neg_samples": 0})
    assert "seen_everything" in codes(answer("check", config, folder=tmp_path))


@pytest.mark.filterwarnings("ignore:.*without a training event", "ignore:.*no training event")
def test_items_that_nobody_trained_on_can_be_drawn_where_they_are_kept(tmp_path: Path) -> None:
    """By uniform negatives: a user of every trained item is then trained on."""
    rows = [f"u{user},i{(user + step) % 9},{step}" for user in range(20) for step in range(5)]
    write(tmp_path / "data.csv", [*rows, *(f"all,i{item},{item}" for item in range(9)), "all,late,90", "all,last,91"])
    for cold in ("drop", "keep"):
        config = write_config(tmp_path, {"splitter": {"cold": cold}}, GRU4Rec=MODELS["GRU4Rec"])
        trains = here("train", config, "--overwrite", folder=tmp_path)[0] == 0
        assert (here("check", config, folder=tmp_path)[0] == 0) == trains == (cold == "keep")


def test_reader_options(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text(
        "".join(f"{u}::{(u + i) % 20:03d}::5::{9 * i}\n" for u in range(20) for i in range(1, 6))
    )
    ask = ("check", "u.data", "--file-format", "csv", "--sep", "::", "--no-header", "--user", 0, "--item", 1)
    said = answer(*ask, "--timestamp", 3, "--item-id-type", "int64", folder=tmp_path)
    assert (said["users"], said["items"], said["tied_share"]) == (20, 20, 0.0)
    assert answer(*ask, "--timestamp", "null", folder=tmp_path)["tied_share"] is None
    assert "reader.file_format" in refusal("check", "u.data", "--file-format", "xml", folder=tmp_path)
    assert "user is column 9" in refusal(*ask, "--user", 9, folder=tmp_path)


def test_one_user_no_event_and_no_file(tmp_path: Path) -> None:
    one = write(tmp_path / "one.csv", [f"u,i{step},{step}" for step in range(5)])
    code, out, err = here("check", one, *COLUMNS, "--json", folder=tmp_path)
    said = json.loads(out)
    assert code == 2 and said["users"] == 1 and said["split"] is None
    assert "no user keeps 2 or more" in said["split_refused"] or "leaves no test events" in said["split_refused"]
    assert said["split_refused"] in err and "seen_everything" in codes(said)
    write(tmp_path / "empty.csv", [])
    assert "empty.csv: no events" in refusal("check", "empty.csv", *COLUMNS, folder=tmp_path)
    assert "nowhere.csv: no such file" in refusal("check", "nowhere.csv", folder=tmp_path)


def test_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sound(tmp_path / "data.csv")
    ask = ("check", "data.csv", *COLUMNS, "--figure", "lengths.png")
    assert here(*ask, folder=tmp_path)[0] == 0
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert "nowhere" in refusal(*ask[:-1], "nowhere/lengths.png", folder=tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "fastseq-rec[cli]" in refusal(*ask, folder=tmp_path)


def test_train_says_what_matters_and_nothing_else(tmp_path: Path) -> None:
    """The demo data have repeats, which the scores name, and few targets beyond L."""
    write_sound(tmp_path / "data.csv")
    with (tmp_path / "data.csv").open("a") as file:
        file.write("".join(f"U{user},i{item},{1000 + item}\n" for user in range(9) for item in range(6)))
    config = write_config(tmp_path, GRU4Rec={**MODELS["GRU4Rec"], "epochs": 1, "max_seq_len": 20})
    code, out, err = here("train", config, "--json", folder=tmp_path)
    assert code == 0 and json.loads(out)["runs"]
    said = [line for line in err.splitlines() if "fastseq check" in line or "in case" in line or "upper" in line]
    assert len(said) == 2 and "18 user ids are equal to another but for upper and lower case" in said[0]
    write_sound(tmp_path / "data.csv")
    code, _, err = here("train", config, "--overwrite", folder=tmp_path)
    assert code == 0 and "fastseq check" not in err


def test_the_demo_is_trained_without_a_word_about_its_data() -> None:
    from fastseq.cli import experiment
    from fastseq.cli.configuration import load_config

    settings = load_config(ROOT / "examples" / "demo.yaml")
    data, parts = experiment.read_and_split(settings)
    assert data.n_events == make_demo().n_events
    report = experiment.look(settings, data, parts)
    assert experiment.worth_saying(report, parts) == []
    assert {"repeats", "long_histories"} == {finding.code for finding in report.findings}
