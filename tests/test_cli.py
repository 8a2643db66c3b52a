"""The command line end to end: train, evaluate, recommend, errors and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.test_config import seed_blocks

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


def fastseq(*arguments: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs the command; with check, a failure shows what it printed."""
    command = [sys.executable, "-m", "fastseq.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)
    if check:
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def write_data(path: Path, users: int = 80, items: int = 30, length: int = 12) -> None:
    rows = ["user,item,time"]
    for user in range(users):
        rows += [f"u{user},i{(user * 7 + step * (1 + user % 3)) % items},{1000 + step}" for step in range(length)]
    path.write_text("\n".join(rows) + "\n")


def write_config(folder: Path, **models: dict[str, object]) -> Path:
    labels = {"user_id_label": "user", "item_id_label": "item", "timestamp_label": "time"}
    tree = {
        "reader": {"local_path": str(folder / "data.csv"), "labels": labels},
        "models": models,
        "evaluation": {"top_k": [5, 10]},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """All three models trained once from a configuration; the folder and what --json said."""
    folder = tmp_path_factory.mktemp("cli")
    write_data(folder / "data.csv")
    done = fastseq("train", write_config(folder, **MODELS), "--json", cwd=folder)
    return folder, json.loads(done.stdout)


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
        assert {"filters", "training_seed", "versions"} <= set(run["evaluation"]["protocol"])
        assert run["training"]["targets_per_second"] > 0 and run["peak_rss_mb"] > 0


def test_evaluate_repeats_the_score(trained: tuple[Path, dict[str, object]]) -> None:
    folder, said = trained
    for run in said["runs"]:  # type: ignore[attr-defined]
        again = json.loads(fastseq("evaluate", run["run"], "--json", cwd=folder).stdout)
        assert again["metrics"] == run["evaluation"]["metrics"]


def test_recommend_in_raw_ids(trained: tuple[Path, dict[str, object]]) -> None:
    folder, _ = trained
    rows = json.loads(
        fastseq("recommend", "runs/data/SASRec", "-u", "u3", "--history", "i1,i2", "-k", 4, "--json", cwd=folder).stdout
    )
    assert [row["for"] for row in rows] == ["u3", "i1,i2"]
    for row in rows:
        assert len(row["items"]) == 4 and all(item.startswith("i") for item in row["items"])
        assert row["scores"] == sorted(row["scores"], reverse=True)
    assert not {"i1", "i2"} & set(rows[1]["items"])


def test_caser_refuses_an_unknown_user_unless_asked(trained: tuple[Path, dict[str, object]]) -> None:
    folder, _ = trained
    refused = fastseq("recommend", "runs/data/Caser", "--history", "i1", cwd=folder, check=False)
    assert refused.returncode == 2 and "mean" in refused.stderr
    answered = fastseq("recommend", "runs/data/Caser", "--history", "i1", "--mean-user", "--json", cwd=folder)
    assert len(json.loads(answered.stdout)[0]["items"]) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nowhere.yaml"), "nowhere.yaml"),
        (("train", "config.yaml"), "--resume"),  # the folder exists
        (("evaluate", "nowhere"), "nowhere"),
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
    done = fastseq(*arguments, cwd=folder, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_bad_hyperparameter_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    write_data(tmp_path / "data.csv")
    bad = {**MODELS["SASRec"], "n_heads": 3}
    done = fastseq("train", write_config(tmp_path, GRU4Rec=MODELS["GRU4Rec"], SASRec=bad), cwd=tmp_path, check=False)
    assert done.returncode == 2 and "n_heads" in done.stderr and not (tmp_path / "runs").exists()


def test_ctrl_c_saves_and_resume_finishes(tmp_path: Path) -> None:
    write_data(tmp_path / "data.csv", users=300)
    config = write_config(tmp_path, GRU4Rec={**MODELS["GRU4Rec"], "epochs": 60})
    command = [sys.executable, "-m", "fastseq.cli", "train", str(config), "--json"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs/data/GRU4Rec/metrics.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "resume" in json.loads(out)["runs"][0]["training"]["message"]
    done = json.loads(fastseq("train", config, "--resume", "--json", cwd=tmp_path).stdout)
    assert done["runs"][0]["training"]["epochs"] == 60
    assert metrics.read_text().count("\n") == 60


@pytest.mark.parametrize("place", [0, 1, 2], ids=["Caser", "GRU4Rec", "SASRec"])
def test_the_seeds_blocks_train_verbatim(place: int, tmp_path: Path) -> None:
    """The original request's text, epochs and all, as it stands."""
    path = tmp_path / "seed.yaml"
    path.write_text(seed_blocks()[place])
    run = json.loads(fastseq("train", path, "--json", cwd=tmp_path).stdout)["runs"][0]
    assert run["training"]["stopped"] == "finished"
    assert run["training"]["epochs"] == {"Caser": 3, "GRU4Rec": 20, "SASRec": 1}[run["model"]]


def test_version_and_help(tmp_path: Path) -> None:
    from fastseq import __version__

    assert fastseq("--version", cwd=tmp_path).stdout.strip() == __version__
    for command in ("train", "evaluate", "recommend", "bench"):
        assert "Usage" in fastseq(command, "--help", cwd=tmp_path).stdout
