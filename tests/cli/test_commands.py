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

import pytest
import yaml

from .test_configuration import REFERENCE_BLOCKS

TINY = {
    "embedding_size": 16,
    "dropout_prob": 0.1,
    "weight_decay": 0.0,
    "learning_rate": 0.005,
    "epochs": 2,
    "max_seq_len": 8,
    "batch_size": 64,
    "neg_samples": 1,
}
MODELS = {
    "SASRec": {**TINY, "n_layers": 1, "n_heads": 2, "inner_size": 16, "attn_dropout_prob": 0.1},
    "GRU4Rec": {**TINY, "hidden_size": 16, "num_layers": 1},
    "Caser": {**TINY, "n_h": 2, "n_v": 1},
}


SPLITS = ("test_splitting", "validation_splitting")


def fastseq(*arguments: object, cwd: Path) -> str:
    """Runs the command in a process of its own; its stdout, or a failure that shows what it printed."""
    command = [sys.executable, "-m", "fastseq.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def here(*arguments: object, folder: Path, stdin: str = "") -> tuple[int, str, str]:
    """The same in this process, which is quicker: exit code, stdout, stderr. A traceback is a failure."""
    from fastseq import cli

    out, err = io.StringIO(), io.StringIO()
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
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """All three models trained once from a configuration; the folder and what --json said."""
    folder = tmp_path_factory.mktemp("cli")
    write_data(folder / "data.csv")
    code, out, err = here("train", write_config(folder, **MODELS), "--json", folder=folder)
    assert code == 0, err
    return folder, json.loads(out)


def test_train_writes_run_folders(trained: tuple[Path, dict[str, object]]) -> None:
    folder, said = trained
    assert set(said) == {"popularity", "runs"}
    for run in said["runs"]:  # type: ignore[attr-defined]
        path = folder / run["run"]
        names = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
        assert {"config.yaml", "metrics.jsonl", "curve.png", "evaluation.json", "ids.safetensors"} <= names
        assert {"checkpoints/last.safetensors", "checkpoints/best.safetensors"} <= names
        assert len((path / "metrics.jsonl").read_text().splitlines()) == 2
        metrics = run["evaluation"]["metrics"]
        assert 0 <= metrics["NDCG@5"] <= metrics["NDCG@10"] <= metrics["HR@10"] <= 1
        assert run["evaluation"]["protocol"]["split"]["data_hash"]
        assert {"training_seed", "versions"} <= set(run["evaluation"]["protocol"])
        assert run["evaluation"]["protocol"]["split"]["filters"] == []
        assert run["training"]["targets_per_second"] > 0 and run["peak_rss_mb"] > 0


def test_evaluate_repeats_the_score(trained: tuple[Path, dict[str, object]]) -> None:
    folder, said = trained
    for run in said["runs"]:  # type: ignore[attr-defined]
        code, out, err = here("evaluate", run["run"], "--json", folder=folder)
        assert code == 0, err
        assert json.loads(out)["metrics"] == run["evaluation"]["metrics"]


def test_recommend_in_raw_ids(trained: tuple[Path, dict[str, object]]) -> None:
    folder, _ = trained
    rows = json.loads(
        fastseq("recommend", "runs/data/SASRec", "-u", "u3", "--history", "i1,i2", "-k", 4, "--json", cwd=folder)
    )
    assert [row["for"] for row in rows] == ["u3", "i1,i2"]
    for row in rows:
        assert len(row["items"]) == 4 and all(item.startswith("i") for item in row["items"])
        assert row["scores"] == sorted(row["scores"], reverse=True)
    assert not {"i1", "i2"} & set(rows[1]["items"])


def test_caser_refuses_an_unknown_user_unless_asked(trained: tuple[Path, dict[str, object]]) -> None:
    folder, _ = trained
    code, _, err = here("recommend", "runs/data/Caser", "--history", "i1", folder=folder)
    assert code == 2 and "--mean-user" in err
    code, out, err = here("recommend", "runs/data/Caser", "--history", "i1", "--mean-user", "--json", folder=folder)
    assert code == 0 and len(json.loads(out)[0]["items"]) == 10


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
def test_mistakes_exit_2_and_name_the_culprit(
    trained: tuple[Path, dict[str, object]], arguments: tuple[str, ...], message: str
) -> None:
    folder, _ = trained
    code, _, err = here(*arguments, folder=folder)
    assert code == 2, err
    assert message in err


def test_a_bad_hyperparameter_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    write_data(tmp_path / "data.csv")
    bad = {**MODELS["SASRec"], "n_heads": 3}
    code, _, err = here("train", write_config(tmp_path, GRU4Rec=MODELS["GRU4Rec"], SASRec=bad), folder=tmp_path)
    assert code == 2 and "n_heads" in err and not (tmp_path / "runs").exists()


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
    code, out, err = here("train", config, "--resume", "--json", folder=tmp_path)
    assert code == 0, err
    assert json.loads(out)["runs"][0]["training"]["epochs"] == epochs
    assert metrics.read_text().count("\n") == epochs


def test_evaluate_takes_part_cutoffs_and_protocol(trained: tuple[Path, dict[str, object]]) -> None:
    folder, _ = trained
    code, out, err = here("evaluate", "runs/data/SASRec", "--part", "validation", "-k", 3, "--json", folder=folder)
    assert code == 0, err
    found = json.loads(out)
    assert found["protocol"]["part"] == "validation" and "NDCG@3" in found["metrics"]
    code, out, err = here("evaluate", "runs/data/SASRec", "--sampled", 7, "-k", 2, "-k", 4, "--json", folder=folder)
    assert code == 0, err
    found = json.loads(out)
    assert found["protocol"]["ks"] == [2, 4] and "7 items drawn" in found["protocol"]["candidates"]
    code, out, _ = here("evaluate", "runs/data/SASRec", folder=folder)
    assert code == 0 and "NDCG@10" in out and "pessimistic" in out
    for arguments, message in ((("-k", 0), "-k"), (("--sampled", 0), "--sampled"), (("--part", "train"), "train")):
        code, _, err = here("evaluate", "runs/data/SASRec", *arguments, folder=folder)
        assert code == 2 and message in err


def test_recommend_for_lines_of_text_and_for_samples(trained: tuple[Path, dict[str, object]]) -> None:
    folder, _ = trained
    ask = ("recommend", "runs/data/GRU4Rec", "-k", 3)
    code, out, err = here(*ask, "--input", "-", "--sample", 2, "--json", folder=folder, stdin="i1 i2\n\ni3\n")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["for"] for row in rows] == ["u0", "u45", "line 1", "line 2", "line 3"]
    assert all(len(row["items"]) == 3 for row in rows)
    seen = ("--history", ",".join(f"i{i}" for i in range(30)))
    assert json.loads(here(*ask, *seen, "--json", folder=folder)[1])[0]["items"] == []
    assert len(json.loads(here(*ask, *seen, "--include-seen", "--json", folder=folder)[1])[0]["items"]) == 3
    code, _, err = here(*ask, "--history", "i1,new", folder=folder)
    assert code == 2 and "'new'" in err and "--skip-unknown" in err
    code, out, _ = here(*ask, "--history", "i1,new", "--skip-unknown", folder=folder)
    assert code == 0 and "GRU4Rec recommends" in out
    code, _, err = here(*ask, "--input", "nowhere.txt", folder=folder)
    assert code == 2 and "nowhere.txt" in err


def test_recommend_reads_marked_files_and_names_their_lines(
    trained: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    """A byte-order mark, as spreadsheets write, and tabs, which let an id have spaces."""
    folder, _ = trained
    file = tmp_path / "histories.txt"
    ask = ("recommend", "runs/data/GRU4Rec", "-k", 3, "--input", file)
    file.write_text("\ufeffi1 i2\ni1\ti2\n", encoding="utf-8")
    code, out, err = here(*ask, "--json", folder=folder)
    assert code == 0, err
    first, second = json.loads(out)
    assert first["items"] == second["items"]
    file.write_text("i1\ni1\tan item\n")
    code, _, err = here(*ask, folder=folder)
    assert code == 2 and "histories.txt, line 2: item 2, 'an item'," in " ".join(err.split())


def test_data_that_changed_since_training_is_refused(trained: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    folder, _ = trained
    text = (folder / "data.csv").read_text()
    try:
        (folder / "data.csv").write_text(text + "u0,another,9999\n")
        for command in (("evaluate", "runs/data/SASRec"), ("recommend", "runs/data/SASRec", "-u", "u3")):
            code, _, err = here(*command, folder=folder)
            assert code == 2 and "the data has changed since this run was trained" in err
    finally:
        (folder / "data.csv").write_text(text)


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
    assert protocol["split"]["filters"] == [{"min_user": 3, "min_item": 1, "duplicates": "keep"}]
    before = (run / "checkpoints/last.safetensors").stat().st_mtime_ns
    code, _, err = here("train", config, folder=tmp_path)
    assert code == 2 and "--overwrite" in err and (run / "checkpoints/last.safetensors").stat().st_mtime_ns == before
    code, out, err = here("train", config, "--overwrite", folder=tmp_path)
    assert code == 0, err
    assert "sampled ranking" in out and "Coverage@10" in out and "–" in out and "popularity" in out
    assert (run / "checkpoints/last.safetensors").stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {
                "splitter": {
                    f"{p}_splitting": {"strategy": "temporal_holdout", "ratio": 0.6} for p in ("test", "validation")
                }
            },
            "splitter: test + validation is 1.2",
        ),
        ({"reader": {"local_path": "data.csv"}}, "reader.labels.user_id_label"),
        ({"reader": {"local_path": "none.csv"}}, "reader.local_path: none.csv does not exist"),
        ({"general": {"device": "gpu"}}, "general.device is 'gpu'"),
        ({"filtering": {"ItemMin": {"min_interactions": 10**6}}}, "lower the limits"),
    ],
)
def test_what_configuration_and_data_contradict_is_named(
    tmp_path: Path, sections: dict[str, object], message: str
) -> None:
    write_data(tmp_path / "data.csv")
    code, _, err = here("train", write_config(tmp_path, sections, GRU4Rec=MODELS["GRU4Rec"]), folder=tmp_path)
    assert code == 2 and message in err.replace("\n", " ") and not (tmp_path / "runs").exists()


def test_a_user_who_has_seen_everything_is_named_before_training(tmp_path: Path) -> None:
    rows = [f"all,i{place % 4},{place}" for place in range(6)] + [f"some,i{i},{i}" for i in range(4)]
    (tmp_path / "data.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    code, _, err = here("train", write_config(tmp_path, GRU4Rec=MODELS["GRU4Rec"]), folder=tmp_path)
    assert code == 2 and "user 'all' has seen every one of the 4 items" in err and "neg_samples: 0" in err


def test_a_folder_in_use_is_refused_before_any_model_is_trained(tmp_path: Path) -> None:
    write_data(tmp_path / "data.csv")
    used = tmp_path / "runs/data/SASRec"
    used.mkdir(parents=True)
    (used / "notes.txt").write_text("mine")
    config = write_config(tmp_path, GRU4Rec=MODELS["GRU4Rec"], SASRec=MODELS["SASRec"])
    code, _, err = here("train", config, folder=tmp_path)
    assert code == 2 and "runs/data/SASRec" in err and not (tmp_path / "runs/data/GRU4Rec").exists()


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
    code, out, _ = here("train", config, "--json", "--resume", folder=tmp_path)
    assert code == 0 and json.loads(out)["runs"][0]["evaluation"]["metrics"]


@pytest.mark.slow
def test_two_processes_answer_once(tmp_path: Path) -> None:
    write_data(tmp_path / "data.csv")
    config = write_config(tmp_path, GRU4Rec={**MODELS["GRU4Rec"], "epochs": 1}, Caser={**MODELS["Caser"], "epochs": 1})
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastseq.cli"]
    command = [sys.executable, *launcher, "train", str(config), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert [run["model"] for run in runs] == ["Caser", "GRU4Rec"]
    again = json.loads(here("evaluate", runs[0]["run"], "--json", folder=tmp_path)[1])["metrics"]
    assert again == pytest.approx(runs[0]["evaluation"]["metrics"], abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("block", REFERENCE_BLOCKS, ids=["Caser", "GRU4Rec", "SASRec"])
def test_the_reference_configurations_train_verbatim(block: str, tmp_path: Path) -> None:
    """The original text, epochs and all, as it stands."""
    path = tmp_path / "reference.yaml"
    path.write_text(block)
    code, out, err = here("train", path, "--json", folder=tmp_path)
    assert code == 0, err
    run = json.loads(out)["runs"][0]
    assert run["training"]["stopped"] == "finished"
    assert run["training"]["epochs"] == {"Caser": 3, "GRU4Rec": 20, "SASRec": 1}[run["model"]]


def test_version_and_help(tmp_path: Path) -> None:
    from fastseq import __version__

    assert fastseq("--version", cwd=tmp_path).strip() == __version__
    for command in ("train", "evaluate", "recommend", "verify", "bench"):
        code, out, _ = here(command, "--help", folder=tmp_path)
        assert code == 0 and "Usage" in out
    assert "Exit codes" in here("--help", folder=tmp_path)[1]


def test_a_run_folder_serves_only_its_own_model(trained: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    folder, _ = trained
    run = tmp_path / "SASRec"
    shutil.copytree(folder / "runs/data/SASRec", run)
    shutil.copy(folder / "runs/data/GRU4Rec/checkpoints/best.safetensors", run / "checkpoints/best.safetensors")
    code, _, err = here("recommend", run, "--history", "i1", folder=folder)
    assert code == 2 and "holds a GRU4Rec" in err
    shutil.copy(folder / "runs/data/SASRec/checkpoints/best.safetensors", run / "checkpoints/best.safetensors")
    (run / "ids.safetensors").unlink()
    code, _, err = here("recommend", run, "--history", "i1", folder=folder)
    assert code == 2 and "ids.safetensors: missing" in err


def test_mistakes_are_found_before_any_model_trains(tmp_path: Path) -> None:
    rows = [f"u{user},i{step},{step}" for user in range(4) for step in range(6 if user else 9)]
    (tmp_path / "data.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n")
    no_negatives = {**MODELS["GRU4Rec"], "neg_samples": 0}
    config = write_config(tmp_path, GRU4Rec=no_negatives, SASRec={**MODELS["SASRec"], "embedding_size": 10**12})
    code, _, err = here("train", config, folder=tmp_path)
    assert code == 2 and "do not fit into memory" in err and not (tmp_path / "runs").exists()
    config = write_config(tmp_path, GRU4Rec=no_negatives)
    tree = yaml.safe_load(config.read_text()) | {"splitter": {part: {"k": 50} for part in SPLITS}}
    config.write_text(yaml.safe_dump(tree))
    code, _, err = here("train", config, folder=tmp_path)
    assert code == 2 and "leaves no test events" in err
