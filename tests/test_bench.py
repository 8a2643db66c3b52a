"""The benchmarks measure the loop that trains, and say what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastseq.cli import experiment
from fastseq.cli.configuration import parse_config
from fastseq.data.interactions import Interactions
from fastseq.data.split import Split, leave_one_out
from fastseq.training import throughput as bench
from fastseq.training.loop import Trainer

from .cli.test_commands import here, write_data
from .cli.test_configuration import seed_blocks

SCRIPTS = Path(__file__).resolve().parents[1] / "benchmarks"
LABELS = "user_id,item_id,timestamp"
TRAINING_KEYS = {
    "targets_per_s", "steps", "targets", "seconds", "stride", "batch_size", "first_loss", "last_loss", "peak_rss_mb",
    "config", "versions",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "data.csv"
    write_data(path, users=40)
    path.write_text(path.read_text().replace("user,item,time", LABELS))
    return path


def test_configurations_are_the_seeds() -> None:
    trees = [yaml.safe_load(block)["models"] for block in seed_blocks()]
    assert {name: params for tree in trees for name, params in tree.items()} == bench.REFERENCE_CONFIGURATIONS


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "Caser"])
def test_training_throughput_runs_the_loop_of_fastseq_train(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same training part and options, both take the same steps: equal losses, bit for bit."""
    losses: dict[str, list[float]] = {"train": [], "bench": []}
    into = "train"
    step = Trainer._step

    def recorded(trainer: Trainer, batch: Any) -> None:
        step(trainer, batch)
        losses[into].append(float(trainer._pending[-1][0]))

    monkeypatch.setattr(Trainer, "_step", recorded)
    params = bench.reference_params(model, 8, batch_size=64) | {"epochs": 1}
    tree = {"models": {model: params}, "reader": {"local_path": str(data)}}
    config = parse_config(tree | {"writer": {"local_experiment_path": str(tmp_path)}})
    (outcome,) = experiment.train(config)
    assert outcome.result.steps == len(losses["train"]) > 2

    def held_out(interactions: Interactions) -> Split:
        return leave_one_out(interactions)

    into = "bench"
    monkeypatch.setattr(bench, "everything", held_out)
    figures = bench.train_throughput(model, data, 8, batch_size=64, seconds=0.3, warmup_seconds=0)
    steps = min(len(losses["train"]), figures["steps"])
    assert losses["bench"][:steps] == losses["train"][:steps]
    assert figures["first_loss"] == pytest.approx(losses["train"][0])


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_train_throughput_prints_one_json_line(data: Path) -> None:
    options = ("--max-len", 6, "--stride", 2, "--batch-size", 32, "--loss", "bce", "--precision", "bf16")
    done = script(
        "train_throughput.py", "--model", "GRU4Rec", "--data", data, *options, "--seconds", 0.2, "--json"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert set(found) >= TRAINING_KEYS
    assert (found["stride"], found["batch_size"], found["precision"], found["per_target"]) == (2, 32, "bf16", False)
    assert found["config"] == {
        **bench.REFERENCE_CONFIGURATIONS["GRU4Rec"],
        "model": "GRU4Rec",
        "reg_weight": 0.0,
        "loss": "bce",
        "max_seq_len": 6,
        "window_stride": 2,
        "batch_size": 32,
    }
    assert found["steps"] > 0 and found["targets"] > 0 and found["seconds"] >= 0.2
    assert found["targets_per_s"] == pytest.approx(found["targets"] / found["seconds"], rel=0.02)
    assert found["versions"]["fastseq"] and found["data"]["events"] == 480


def test_predict_throughput_prints_one_json_line(data: Path) -> None:
    options = ("--model", "Caser", "--data", data, "--max-len", 5, "-k", 3, "--batch-size", 8)
    done = script("predict_throughput.py", *options, "--seconds", 0.1, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"histories_per_s", "calls", "p50_ms", "p99_ms", "peak_rss_mb", "config", "versions"} <= set(found)
    assert (found["k"], found["batch_size"], found["config"]["model"]) == (3, 8, "Caser")
    assert found["p50_ms"] <= found["p99_ms"]


def test_mistakes_are_one_line(data: Path) -> None:
    for options, message in (
        (("--data", "none.csv"), "none.csv"),
        (("--data", data, "--max-len", 5, "--stride", 6), "window_stride is 6"),
    ):
        done = script("train_throughput.py", "--model", "SASRec", *options)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("per_target", [False, True])
def test_the_command_measures_too(data: Path, tmp_path: Path, per_target: bool) -> None:
    options = ("--model", "Caser", "--data", data, "--max-len", 5, "--seconds", 0.1, "--json")
    code, out, err = here("bench", "train", *options, *["--per-target"] * per_target, folder=tmp_path)
    assert code == 0, err
    found = json.loads(out)
    assert found["stride"] == (1 if per_target else 5) and found["per_target"] is per_target
    if per_target:
        return
    code, out, err = here("bench", "predict", *options[:-1], "-k", 2, folder=tmp_path)
    assert code == 0 and "histories_per_s" in out
    code, _, err = here("bench", "train", "--model", "BERT4Rec", "--data", data, folder=tmp_path)
    assert code == 2 and "expected one of SASRec, GRU4Rec, Caser" in err
