"""The command line end to end: train, evaluate, recommend, errors and exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fastseq.devices import device_name
from fastseq.training import RunFolder, checkpoint
from tests import run_python
from tests.models.small import small_params

from .test_configuration import REFERENCE_BLOCKS

MODELS = {name: small_params(name, learning_rate=0.005, epochs=2) for name in ("SASRec", "GRU4Rec", "Caser")}
HOLDOUT = {"strategy": "temporal_holdout", "ratio": 0.6}
SPLITS = ("test_splitting", "validation_splitting")


class Terminal(io.StringIO):
    """Takes what a terminal would show."""

    def isatty(self) -> bool:
        return True


def here(*arguments: object, folder: Path, stdin: str = "", terminal: bool = False) -> tuple[int, str, str]:
    """Runs the command in this process, which is quick: exit code, stdout, stderr. A traceback is a failure."""
    from fastseq import cli

    out, err = (Terminal if terminal else io.StringIO)(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setenv("GOMP_SPINCOUNT", os.environ.get("GOMP_SPINCOUNT", "2000"))
        patch.setattr(sys, "argv", ["fastseq", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def answer(*arguments: object, folder: Path, stdin: str = "") -> Any:
    """What the command, which succeeds, prints with --json."""
    code, out, err = here(*arguments, "--json", folder=folder, stdin=stdin)
    assert code == 0, err
    return json.loads(out)


def refusal(*arguments: object, folder: Path) -> str:
    """The one line of stderr of a command that exits with 2."""
    code, _, err = here(*arguments, folder=folder)
    assert code == 2, err
    return " ".join(err.split())


def write_data(path: Path, users: int = 80, items: int = 30, length: int = 12) -> None:
    rows = ["user,item,time"]
    for user in range(users):
        rows += [f"u{user},i{(user * 7 + step * (1 + user % 3)) % items},{1000 + step}" for step in range(length)]
    path.write_text("\n".join(rows) + "\n")


def write_config(folder: Path, sections: dict[str, object] | None = None, **models: dict[str, object]) -> Path:
    labels = {"user_id_label": "user", "item_id_label": "item", "timestamp_label": "time"}
    tree = {
        "reader": {"local_path": str(folder / "data.csv"), "labels": labels},
        "models": models,
        "evaluation": {"top_k": [5, 10]},
        **(sections or {}),
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """All three models trained once from a configuration; the folder and what --json said."""
    folder = tmp_path_factory.mktemp("cli")
    write_data(folder / "data.csv")
    return folder, answer("train", write_config(folder, **MODELS), folder=folder)


@pytest.fixture
def folder(trained: tuple[Path, Any]) -> Path:
    return trained[0]


def test_train_writes_run_folders(trained: tuple[Path, Any]) -> None:
    folder, said = trained
    assert set(said) == {"popularity", "runs"}
    for run in said["runs"]:
        path = folder / run["run"]
        names = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
        assert {"config.yaml", "metrics.jsonl", "curve.png", "evaluation.json", "ids.safetensors"} <= names
        assert "evaluation_users.safetensors" in names
        assert {"checkpoints/last.safetensors", "checkpoints/best.safetensors"} <= names
        assert len((path / "metrics.jsonl").read_text().splitlines()) == 2
        metrics = run["evaluation"]["metrics"]
        assert 0 <= metrics["NDCG@5"] <= metrics["NDCG@10"] <= metrics["HR@10"] <= 1
        assert run["evaluation"]["protocol"]["split"]["data_hash"]
        assert {"training_seed", "versions"} <= set(run["evaluation"]["protocol"])
        assert run["evaluation"]["protocol"]["split"]["filters"] == []
        assert run["training"]["targets_per_second"] > 0 and run["peak_rss_mb"] > 0


def test_evaluate_repeats_the_score(trained: tuple[Path, Any]) -> None:
    folder, said = trained
    for run in said["runs"]:
        assert answer("evaluate", run["run"], folder=folder)["metrics"] == run["evaluation"]["metrics"]


def test_recommend_in_raw_ids(folder: Path) -> None:
    ask = ("recommend", "runs/data/SASRec", "-u", "u3", "--history", "i1,i2", "-k", 4, "--json")
    rows = json.loads(run_python("-m", "fastseq.cli", *ask, cwd=folder).stdout)
    assert [row["for"] for row in rows] == ["u3", "i1,i2"]
    for row in rows:
        assert len(row["items"]) == 4 and all(item.startswith("i") for item in row["items"])
        assert row["scores"] == sorted(row["scores"], reverse=True)
    assert not {"i1", "i2"} & set(rows[1]["items"])


def test_recommend_needs_no_scores(folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(folder / "runs/data/SASRec", tmp_path / "run")
    (run / "evaluation.json").write_text("{")  # cut off
    assert len(answer("recommend", run, "--history", "i1", folder=folder)[0]["items"]) == 10


def test_a_best_epoch_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(folder / "runs/data/SASRec", tmp_path / "run")
    RunFolder.existing(run).best_path.unlink()
    for command in ("evaluate", "recommend"):
        assert "was the best; restore it, or name the last epoch" in refusal(command, run, folder=folder)


def test_caser_refuses_an_unknown_user_unless_asked(folder: Path) -> None:
    ask = ("recommend", "runs/data/Caser", "--history", "i1")
    assert "--mean-user" in refusal(*ask, folder=folder)
    assert len(answer(*ask, "--mean-user", folder=folder)[0]["items"]) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nowhere.yaml"), "nowhere.yaml"),
        (("train", "config.yaml"), "--resume"),  # the folder exists
        (("evaluate", "nowhere"), "nowhere: no such run folder"),
        (("recommend", "runs/data/SASRec", "-u", "nobody"), "nobody"),
        (("recommend", "runs/data/SASRec", "--history", "i1,nothing"), "nothing"),
        (("recommend", "runs/data/SASRec"), "--history"),
        (("frobnicate",), "frobnicate"),
    ],
)
def test_mistakes_exit_2_and_name_the_culprit(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in refusal(*arguments, folder=folder)


def test_a_bad_hyperparameter_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    write_data(tmp_path / "data.csv")
    bad = {**MODELS["SASRec"], "n_heads": 3}
    config = write_config(tmp_path, GRU4Rec=MODELS["GRU4Rec"], SASRec=bad)
    assert "n_heads" in refusal("train", config, folder=tmp_path) and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_finishes(tmp_path: Path) -> None:
    """Of more epochs than any machine finishes while the test waits for two."""
    write_data(tmp_path / "data.csv")
    config = write_config(tmp_path, GRU4Rec={**MODELS["GRU4Rec"], "epochs": 10**6})
    command = [sys.executable, "-m", "fastseq.cli", "train", str(config), "--json"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs/data/GRU4Rec/metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert time.monotonic() < deadline, "no two epochs in two minutes"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    training = json.loads(out)["runs"][0]["training"]
    assert "resume" in training["message"]
    epochs = training["epochs"] + 2
    write_config(tmp_path, GRU4Rec={**MODELS["GRU4Rec"], "epochs": epochs})
    assert answer("train", config, "--resume", folder=tmp_path)["runs"][0]["training"]["epochs"] == epochs
    assert metrics.read_text().count("\n") == epochs


def test_evaluate_takes_part_cutoffs_and_protocol(folder: Path) -> None:
    ask = ("evaluate", "runs/data/SASRec")
    evaluation = answer(*ask, "--part", "validation", "-k", 3, folder=folder)
    assert evaluation["protocol"]["part"] == "validation" and "NDCG@3" in evaluation["metrics"]
    evaluation = answer(*ask, "--sampled", 7, "-k", 2, "-k", 4, folder=folder)
    assert evaluation["protocol"]["ks"] == [2, 4] and "7 items drawn" in evaluation["protocol"]["candidates"]
    code, out, _ = here(*ask, folder=folder)
    assert code == 0 and "NDCG@10" in out and "pessimistic" in out
    for arguments, message in ((("-k", 0), "-k"), (("--sampled", 0), "--sampled"), (("--part", "train"), "train")):
        assert message in refusal(*ask, *arguments, folder=folder)


def test_evaluate_breaks_metrics_down(folder: Path) -> None:
    ask = ("evaluate", "runs/data/SASRec", "--by", "length, popularity")
    evaluation = answer(*ask, folder=folder)
    assert evaluation["by"].keys() == {"length", "popularity"} and "users" not in evaluation
    low, high = evaluation["intervals"]["HR@10"]
    assert low < evaluation["metrics"]["HR@10"] < high
    code, out, err = here(*ask, folder=folder)
    assert code == 0 and f"{low:.4f} – {high:.4f}" in out and "head: " in out and "by popularity" in err
    assert "--by has 'age', expected length, popularity" in refusal(*ask[:2], "--by", "age", folder=folder)


def test_compare_runs(folder: Path, tmp_path: Path) -> None:
    """What training left, then what the latest evaluation leaves; runs that differ in it are refused."""
    runs = [shutil.copytree(folder / "runs/data" / name, tmp_path / name) for name in MODELS]
    said = answer("compare", *runs, folder=folder)
    assert said["first"] == str(runs[0]) and [each["run"] for each in said["comparisons"]] == list(map(str, runs[1:]))
    for run, each in zip(runs[1:], said["comparisons"], strict=True):
        scores = [json.loads((path / "evaluation.json").read_text())["metrics"]["NDCG@5"] for path in (runs[0], run)]
        found = each["metrics"]["NDCG@5"]
        assert [found["first"], found["run"]] == pytest.approx(scores, abs=1e-6)
        assert found["higher"] + found["lower"] + found["equal"] == said["users"] == 80
        assert found["interval"][0] <= found["difference"] <= found["interval"][1] and 0 < found["p"] <= 1
    code, out, err = here("compare", *runs[:2], folder=folder)
    assert code == 0 and "NDCG@10\t" in out and "paired permutation test" in out and "against" in err
    assert "two or more different run folders" in refusal("compare", runs[0], runs[0], folder=folder)
    answer("evaluate", runs[1], "--part", "validation", "-k", 5, folder=folder)
    assert "part is 'test' and 'validation'. Evaluate both alike" in refusal("compare", *runs[:2], folder=folder)
    answer("evaluate", runs[0], "--part", "validation", "-k", 5, folder=folder)
    assert "NDCG@5" in answer("compare", *runs[:2], folder=folder)["comparisons"][0]["metrics"]
    RunFolder.existing(runs[1]).users_path.unlink()
    assert f"`fastseq evaluate {runs[1]}` writes them" in refusal("compare", *runs[:2], folder=folder)


def test_recommend_for_lines_of_text_and_for_samples(folder: Path) -> None:
    ask = ("recommend", "runs/data/GRU4Rec", "-k", 3)
    rows = answer(*ask, "--input", "-", "--sample", 2, folder=folder, stdin="i1 i2\n\ni3\n")
    assert [row["for"] for row in rows] == ["u0", "u45", "line 1", "line 2", "line 3"]
    assert all(len(row["items"]) == 3 for row in rows)
    seen = ("--history", ",".join(f"i{i}" for i in range(30)))
    assert answer(*ask, *seen, folder=folder)[0]["items"] == []
    assert len(answer(*ask, *seen, "--include-seen", folder=folder)[0]["items"]) == 3
    err = refusal(*ask, "--history", "i1,new", folder=folder)
    assert "'new'" in err and "--skip-unknown" in err
    code, out, err = here(*ask, "--history", "i1,new", "--skip-unknown", folder=folder)
    assert code == 0 and "GRU4Rec recommends" in err and len(out.splitlines()[1].split("\t")) == 2 + 3
    assert "nowhere.txt" in refusal(*ask, "--input", "nowhere.txt", folder=folder)


def test_recommend_reads_marked_files_and_names_their_lines(folder: Path, tmp_path: Path) -> None:
    """A byte-order mark, as spreadsheets write, and tabs, which let an id have spaces."""
    file = tmp_path / "histories.txt"
    ask = ("recommend", "runs/data/GRU4Rec", "-k", 3, "--input", file)
    file.write_text("\ufeffi1 i2\ni1\ti2\n", encoding="utf-8")
    first, second = answer(*ask, folder=folder)
    assert first["items"] == second["items"]
    file.write_text("i1\ni1\tan item\n")
    assert "histories.txt, line 2: item 2, 'an item'," in refusal(*ask, folder=folder)


def test_data_that_changed_since_training_are_refused(folder: Path) -> None:
    """Another item, or the same events in another order; both refused, and said where they are allowed."""
    text = (folder / "data.csv").read_text()
    rows = [line.split(",") for line in text.splitlines()[1:]]
    shuffled = "\n".join(["user,item,time", *(f"{user},{item},{-int(time)}" for user, item, time in rows)])
    run, evaluation = "runs/data/SASRec", answer("evaluate", "runs/data/SASRec", folder=folder)
    assert "changed_data" not in evaluation["protocol"]
    try:
        for changed in (text + "".join(f"another,i{item},{item}\n" for item in range(1, 5)), shuffled):
            (folder / "data.csv").write_text(changed)
            for command in (("evaluate", run), ("recommend", run, "-u", "u3")):
                err = refusal(*command, folder=folder)
                assert "the data has changed since this run was trained" in err
                assert "--allow-changed-data" in err and evaluation["protocol"]["split"]["data_hash"][:12] in err
        (_,) = answer("recommend", run, "-u", "u3", "--allow-changed-data", "-k", 1, folder=folder)
        again = answer("evaluate", run, "--allow-changed-data", folder=folder)
        assert evaluation["protocol"]["split"]["data_hash"][:12] in again["protocol"]["changed_data"]
        assert again["metrics"] != evaluation["metrics"]
        (folder / "data.csv").write_text(text + "".join(f"another,new,{time}\n" for time in range(4)))
        assert "built for 30 items" in refusal("evaluate", run, "--allow-changed-data", folder=folder)
    finally:
        (folder / "data.csv").write_text(text)


def test_a_run_of_an_earlier_version_is_named(folder: Path, tmp_path: Path) -> None:
    """Its checkpoint does not say how the tape was cut, and its masks were others."""
    shutil.copytree(folder / "runs/data/SASRec", run := tmp_path / "SASRec")
    path = RunFolder.existing(run).model_path
    tensors, metadata = checkpoint.load(path)
    del metadata["split"]["split_hash"]
    checkpoint.save(path, tensors, metadata)
    for command in (("evaluate", run), ("recommend", run, "-u", "u3")):
        err = refusal(*command, folder=folder)
        assert "trained by an earlier fastseq, whose splits and masks differ" in err and "--allow-changed-data" in err
    assert answer("recommend", run, "--history", "i1,i2", folder=folder)
    assert "earlier" in answer("evaluate", run, "--allow-changed-data", folder=folder)["protocol"]["changed_data"]


def test_users_and_events_that_the_split_left_out_are_recommended_for(tmp_path: Path) -> None:
    """A user of one event, and one whose newest item only the model knows from training."""
    write_data(tmp_path / "data.csv")
    with (tmp_path / "data.csv").open("a") as file:
        file.write("short,i1,1\n")
    config = write_config(tmp_path, SASRec=MODELS["SASRec"] | {"epochs": 1})
    assert here("train", config, folder=tmp_path)[0] == 0
    run = "runs/data/SASRec"
    (short,) = answer("recommend", run, "-u", "short", folder=tmp_path)
    assert short == {**answer("recommend", run, "--history", "i1", folder=tmp_path)[0], "for": "short"}
    # Other data, where i7 has no training event: the model knows it all the same.
    rows = [f"u{user},i{user + item},{item}" for user in (1, 2) for item in range(5)]
    (tmp_path / "other.csv").write_text("user,item,time\n" + "\n".join([*rows, "u1,i7,9"]) + "\n")
    options = ("--data", "other.csv", "--allow-changed-data")
    (ours,) = answer("recommend", run, "-u", "u1", *options, folder=tmp_path)
    (want,) = answer("recommend", run, "--history", "i1,i2,i3,i4,i5,i7", folder=tmp_path)
    assert ours == {**want, "for": "u1"}


def test_a_run_folder_works_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained with relative paths, and ``~`` for the run folders; its data may move."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_data(tmp_path / "data.csv")
    monkeypatch.setenv("HOME", str(home))
    labels = {"user_id_label": "user", "item_id_label": "item", "timestamp_label": "time"}
    reader = {"reader": {"local_path": "data.csv", "labels": labels}}
    config = write_config(tmp_path, reader, GRU4Rec={**MODELS["GRU4Rec"], "epochs": 1})
    assert here("train", config, "--out", "~/runs", folder=tmp_path)[0] == 0
    assert not (tmp_path / "~").exists() and (home / "runs/data/GRU4Rec").is_dir()
    run = "~/runs/data/GRU4Rec"
    evaluation = answer("evaluate", run, folder=elsewhere)
    recommended = answer("recommend", run, "-u", "u3", folder=elsewhere)
    (tmp_path / "data.csv").rename(elsewhere / "moved.csv")
    assert "--data" in refusal("evaluate", run, folder=elsewhere)
    moved = ("--data", "moved.csv")
    assert answer("evaluate", run, *moved, folder=elsewhere)["metrics"] == evaluation["metrics"]
    assert answer("recommend", run, "-u", "u3", *moved, folder=elsewhere) == recommended


def test_a_given_split_may_move(tmp_path: Path) -> None:
    """``--data`` is the folder of the parts for runs with ``loading_strategy: split``."""
    write_data(tmp_path / "data.csv")
    header, *rows = (tmp_path / "data.csv").read_text().splitlines()
    parts = {"train": [row for row in rows if row[-4:] < "1009"], "test": [row for row in rows if row[-4:] >= "1009"]}
    (tmp_path / "parts").mkdir()
    for part, lines in parts.items():
        (tmp_path / f"parts/{part}.csv").write_text("\n".join([header, *lines]) + "\n")
    labels = {"user_id_label": "user", "item_id_label": "item", "timestamp_label": "time"}
    split = {"local_path": "parts", "ext": ".csv", "sep": ","}
    reader = {"reader": {"loading_strategy": "split", "split": split, "labels": labels}}
    config = write_config(tmp_path, reader, GRU4Rec={**MODELS["GRU4Rec"], "epochs": 1})
    code, _, err = here("train", config, folder=tmp_path)
    assert code == 0, err
    run = "runs/parts/GRU4Rec"
    evaluation = answer("evaluate", run, folder=tmp_path)
    (tmp_path / "parts").rename(tmp_path / "moved")
    assert "parts/train.csv" in refusal("evaluate", run, folder=tmp_path)
    moved = ("--data", "moved")
    assert answer("evaluate", run, *moved, folder=tmp_path)["metrics"] == evaluation["metrics"]
    assert answer("recommend", run, "-u", "u3", *moved, folder=tmp_path)
    text = (tmp_path / "moved/test.csv").read_text().splitlines()
    (tmp_path / "moved/test.csv").write_text("\n".join(text[:-5]) + "\n")
    assert "--allow-changed-data" in refusal("evaluate", run, *moved, folder=tmp_path)


def test_a_run_made_from_python_says_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "runs/data/SASRec", run)
    (run / "config.yaml").unlink()
    for command in (("evaluate", run), ("recommend", run, "-u", "u3")):
        err = refusal(*command, folder=folder)
        assert "config.yaml: missing" in err and "evaluate(fastseq.load(run), split)" in err
    assert answer("recommend", run, "--history", "i1", folder=folder)


STRANGE = ("Foo [/bar]", "Alien [uncut] 15", ":smile:", "é 映", "00000011-1111-2222-3333-444455556666", "a\tb")


def test_ids_and_paths_are_printed_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never markup, in any command; whole, on a narrow terminal too; tabs between fields where there is none."""
    items = (*STRANGE[:-1], '"a\tb"', *(f"i{i}" for i in range(12)))
    rows = [f"[/u{user}],{items[(user + 3 * step) % len(items)]},{step}" for user in range(30) for step in range(9)]
    (tmp_path / "data.csv").write_text("\n".join(["user,item,time", *rows]) + "\n", encoding="utf-8")
    writer = {"local_experiment_path": "[/x]", "dataset_name": "d[bold]"}
    models = {name: {**MODELS[name], "epochs": 1} for name in ("GRU4Rec", "SASRec")}
    code, out, err = here("train", write_config(tmp_path, {"writer": writer}, **models), folder=tmp_path)
    assert code == 0 and "[/x]/d[bold]/SASRec" in err and "[/x]/d[bold]/GRU4Rec" in err
    assert [line.split("\t")[0] for line in out.splitlines()] == ["model", "popularity", "GRU4Rec", "SASRec"]
    ask = ("recommend", "[/x]/d[bold]/SASRec", "-u", "[/u3]", "--history", STRANGE[0], "-k", 18, "--include-seen")
    code, out, _ = here(*ask, folder=tmp_path)
    _, first, second = (line.split("\t") for line in out.splitlines())
    assert code == 0 and first[0] == "[/u3]" and second[0] == STRANGE[0]
    assert {text.replace("\t", "\\x09") for text in STRANGE} <= set(first[2:]) == set(second[2:])
    # Each column is 20 characters wide, and wraps.
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = here(*ask, folder=tmp_path, terminal=True)
    shown = "".join(line.split("│")[-2].strip() for line in out.splitlines() if "│" in line).replace(" ", "")
    assert code == 0 and all(text.replace(" ", "").replace("\t", "\\x09") in shown for text in STRANGE), out
    code, out, _ = here("evaluate", "[/x]/d[bold]/SASRec", folder=tmp_path, terminal=True)
    assert code == 0 and "SASRec · d[bold]" in out
    for mistake in (("evaluate", "[/x]"), (*ask, "-u", "[/no]"), ("[/z]",)):
        assert str(mistake[-1]) in refusal(*mistake, folder=tmp_path)
    printed = run_python("-m", "fastseq.cli", *map(str, ask), cwd=tmp_path, PYTHONIOENCODING="ascii").stdout
    assert "\\xe9 \\u6620" in printed and printed.isascii()


def test_overwrite_trains_anew_and_says_so_in_a_table(tmp_path: Path) -> None:
    """Also: filters, a coverage that sampled ranking does not have, no validation part."""
    write_data(tmp_path / "data.csv")
    sections: dict[str, object] = {
        "filtering": {"UserMin": {"min_interactions": 3}},
        "splitter": {"validation_splitting": None},
        "evaluation": {"strategy": "sampled", "num_negatives": 5, "metrics": ["nDCG", "ItemCoverage"]},
    }
    config = write_config(tmp_path, sections, GRU4Rec={**MODELS["GRU4Rec"], "epochs": 1})
    assert here("train", config, folder=tmp_path)[0] == 0
    run = tmp_path / "runs/data/GRU4Rec"
    protocol = json.loads((run / "evaluation.json").read_text())["protocol"]
    assert protocol["split"]["filters"] == [{"filter": "UserMin", "min_interactions": 3}]
    before = (run / "checkpoints/last.safetensors").stat().st_mtime_ns
    assert "--overwrite" in refusal("train", config, folder=tmp_path)
    assert (run / "checkpoints/last.safetensors").stat().st_mtime_ns == before
    code, out, err = here("train", config, "--overwrite", folder=tmp_path)
    assert code == 0, err
    assert "sampled ranking" in err and "ItemCoverage@10" in out and "–" in out and "popularity" in out
    assert (run / "checkpoints/last.safetensors").stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"splitter": {"test_splitting": {**HOLDOUT, "ratio": 1.5}}}, "test_splitting.ratio"),
        ({"reader": {"local_path": "data.csv"}}, "reader.labels.user_id_label"),
        ({"reader": {"local_path": "none.csv"}}, "reader.local_path: none.csv does not exist"),
        ({"general": {"device": "gpu"}}, "general.device is 'gpu'"),
        ({"general": {"device": "meta"}}, "general.device is 'meta', expected auto, cpu or cuda"),
        ({"general": {"device": "cpu:3"}}, "general.device is 'cpu:3'"),
        ({"filtering": {"ItemMin": {"min_interactions": 10**6}}}, "keep more of them"),
    ],
)
def test_what_configuration_and_data_contradict_is_named(
    tmp_path: Path, sections: dict[str, object], message: str
) -> None:
    write_data(tmp_path / "data.csv")
    config = write_config(tmp_path, sections, GRU4Rec=MODELS["GRU4Rec"])
    assert message in refusal("train", config, folder=tmp_path) and not (tmp_path / "runs").exists()


def test_every_command_takes_a_device_and_says_which(
    trained: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = trained
    run, name = "runs/data/SASRec", device_name(torch.device("cpu"))
    lines = [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
    kept = json.loads((folder / run / "evaluation.json").read_text())["protocol"]["device"]
    again = answer("evaluate", run, "--device", "cpu", folder=folder)["protocol"]["device"]
    assert {name} == {kept, again, said["runs"][0]["training"]["device"], *(line["device"] for line in lines)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in (
        ("train", folder / "config.yaml", "--overwrite"), ("evaluate", run), ("recommend", run, "--sample", 1),
        ("bench", "train"), ("bench", "predict"), ("verify", "--config", folder / "config.yaml"),
    ):  # fmt: skip
        for asked, words in (
            ("gpu", "expected auto, cpu or cuda[:n]"),
            ("cuda:1", "PyTorch sees no GPU here; use cpu"),
        ):
            err = refusal(*command, "--device", asked, folder=folder)
            assert f"--device is '{asked}', " in err and words in err
    assert (folder / run / "checkpoints/last.safetensors").exists()


def test_a_device_of_the_command_replaces_those_of_the_configuration(tmp_path: Path) -> None:
    write_data(tmp_path / "data.csv")
    asked = {**MODELS["GRU4Rec"], "epochs": 1, "optimization": {"device": "cuda:7"}}
    config = write_config(tmp_path, {"general": {"device": "cuda:9"}}, GRU4Rec=asked)
    (run,) = answer("train", config, "--device", "cpu", folder=tmp_path)["runs"]
    assert yaml.safe_load((tmp_path / run["run"] / "config.yaml").read_text())["general"]["device"] == "cpu"


def test_mistakes_in_the_environment_are_one_line(folder: Path) -> None:
    for name in ("FASTSEQ_BACKEND", "FASTSEQ_CPU_ISA"):
        command = ("-m", "fastseq.cli", "evaluate", "runs/data/SASRec")
        done = run_python(*command, cwd=folder, returncode=2, **{name: "nope"})
        assert done.stderr.startswith(f"fastseq: {name} is 'nope', expected") and done.stderr.count("\n") == 1


def test_a_user_who_has_seen_everything_is_named_before_training(tmp_path: Path) -> None:
    rows = [f"all,i{i % 4},{i}" for i in range(6)] + [f"some,i{i},{i}" for i in range(4)]
    (tmp_path / "data.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    err = refusal("train", write_config(tmp_path, GRU4Rec=MODELS["GRU4Rec"]), folder=tmp_path)
    assert "user 'all' has seen every one of the 4 items" in err and "neg_samples: 0" in err


def test_a_folder_in_use_is_refused_before_any_model_is_trained(tmp_path: Path) -> None:
    write_data(tmp_path / "data.csv")
    used = tmp_path / "runs/data/SASRec"
    used.mkdir(parents=True)
    (used / "notes.txt").write_text("mine")
    config = write_config(tmp_path, GRU4Rec=MODELS["GRU4Rec"], SASRec=MODELS["SASRec"])
    assert "runs/data/SASRec" in refusal("train", config, folder=tmp_path)
    assert not (tmp_path / "runs/data/GRU4Rec").exists()


def test_ctrl_c_outside_training_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastseq.cli import experiment

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    write_data(tmp_path / "data.csv")
    config = write_config(tmp_path, GRU4Rec={**MODELS["GRU4Rec"], "epochs": 1})
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "score", interrupted)
        code, _, err = here("train", config, "--json", folder=tmp_path)
    assert code == 130 and "--resume" in err
    assert answer("train", config, "--resume", folder=tmp_path)["runs"][0]["evaluation"]["metrics"]


@pytest.mark.slow
def test_two_processes_answer_once(tmp_path: Path) -> None:
    write_data(tmp_path / "data.csv")
    config = write_config(tmp_path, GRU4Rec={**MODELS["GRU4Rec"], "epochs": 1}, Caser={**MODELS["Caser"], "epochs": 1})
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastseq.cli"]
    done = run_python(*launcher, "train", config, "--json", cwd=tmp_path, OMP_NUM_THREADS="1")
    runs = json.loads(done.stdout)["runs"]
    assert [run["model"] for run in runs] == ["Caser", "GRU4Rec"]
    again = answer("evaluate", runs[0]["run"], folder=tmp_path)["metrics"]
    assert again == pytest.approx(runs[0]["evaluation"]["metrics"], abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("block", REFERENCE_BLOCKS, ids=["Caser", "GRU4Rec", "SASRec"])
def test_the_reference_configurations_train_verbatim(block: str, tmp_path: Path) -> None:
    """The original text, epochs and all, as it stands."""
    path = tmp_path / "reference.yaml"
    path.write_text(block)
    run = answer("train", path, folder=tmp_path)["runs"][0]
    assert run["training"]["stopped"] == "finished"
    assert run["training"]["epochs"] == {"Caser": 3, "GRU4Rec": 20, "SASRec": 1}[run["model"]]


def test_version_and_help(tmp_path: Path) -> None:
    from fastseq import __version__

    assert run_python("-m", "fastseq.cli", "--version", cwd=tmp_path).stdout.strip() == __version__
    for command in ("train", "plan", "evaluate", "recommend", "verify", "bench"):
        code, out, _ = here(command, "--help", folder=tmp_path)
        assert code == 0 and "Usage" in out
    assert "Exit codes" in here("--help", folder=tmp_path)[1]


def test_a_run_folder_serves_only_its_own_model(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "SASRec"
    shutil.copytree(folder / "runs/data/SASRec", run)
    shutil.copy(folder / "runs/data/GRU4Rec/checkpoints/best.safetensors", run / "checkpoints/best.safetensors")
    assert "holds a GRU4Rec" in refusal("recommend", run, "--history", "i1", folder=folder)
    shutil.copy(folder / "runs/data/SASRec/checkpoints/best.safetensors", run / "checkpoints/best.safetensors")
    (run / "ids.safetensors").unlink()
    assert "ids.safetensors: missing" in refusal("recommend", run, "--history", "i1", folder=folder)


def test_mistakes_are_found_before_any_model_trains(tmp_path: Path) -> None:
    rows = [f"u{user},i{step},{step}" for user in range(4) for step in range(6 if user else 9)]
    (tmp_path / "data.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n")
    no_negatives = {**MODELS["GRU4Rec"], "neg_samples": 0}
    config = write_config(tmp_path, GRU4Rec=no_negatives, SASRec={**MODELS["SASRec"], "embedding_size": 2**31 - 2})
    assert "do not fit into memory" in refusal("train", config, folder=tmp_path) and not (tmp_path / "runs").exists()
    config = write_config(tmp_path, GRU4Rec=no_negatives)
    tree = yaml.safe_load(config.read_text()) | {"splitter": {part: {"k": 50} for part in SPLITS}}
    config.write_text(yaml.safe_dump(tree))
    assert "no user keeps 2 or more events after the split" in refusal("train", config, folder=tmp_path)


@pytest.mark.slow
def test_torchrun_divides_the_tables(tmp_path: Path) -> None:
    """Two processes with parts of the tables have the scores and answers of two with whole ones."""
    write_data(tmp_path / "data.csv")
    scores: list[list[dict[str, float]]] = []
    answers: list[Any] = []
    for table in ("replicated", "sharded"):
        optimization = {"table": table, "optimizer": "rows"}
        models = {name: {**MODELS[name], "optimization": optimization} for name in ("SASRec", "Caser")}
        config = write_config(tmp_path, {"writer": {"local_experiment_path": table}}, **models)
        launch = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "-m", "fastseq.cli", "train", config)
        run_python(*launch, cwd=tmp_path, OMP_NUM_THREADS="1")
        runs = [tmp_path / table / "data" / name for name in models]
        scores.append([json.loads((run / "evaluation.json").read_text())["metrics"] for run in runs])
        parts = [len(list((run / "checkpoints").glob("*-of-2.safetensors"))) for run in runs]
        assert parts == ([4, 4] if table == "sharded" else [0, 0])
        answers.append(answer("recommend", runs[0], "--history", "i1,i2", "-k", 4, folder=tmp_path))
    for one, other in zip(*scores, strict=True):
        assert other == pytest.approx(one, abs=1e-6)
    assert answers[0][0]["items"] == answers[1][0]["items"]
