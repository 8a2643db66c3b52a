"""fastseq bench measures the loop that trains, and says what it measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

from fastseq.cli import experiment
from fastseq.cli.configuration import parse_config
from fastseq.data.batch import JaggedBatch
from fastseq.data.split import leave_one_out
from fastseq.models import MODELS
from fastseq.training import throughput
from fastseq.training.loop import Trainer
from tests.cli.test_commands import here, refusal, write_data
from tests.cli.test_configuration import REFERENCE_BLOCKS

LABELS = "user_id,item_id,timestamp"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "data.csv"
    write_data(path, users=40)
    path.write_text(path.read_text().replace("user,item,time", LABELS))
    return path


def bench(folder: Path, *arguments: Any) -> dict[str, Any]:
    """Figures of fastseq bench."""
    code, out, err = here("bench", *arguments, "--json", folder=folder)
    assert code == 0, err
    (line,) = out.splitlines()
    return json.loads(line)


def test_configurations_are_the_reference_ones() -> None:
    trees = [yaml.safe_load(block)["models"] for block in REFERENCE_BLOCKS]
    assert {name: params for tree in trees for name, params in tree.items()} == throughput.REFERENCE_CONFIGURATIONS


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "Caser"])
def test_training_throughput_runs_the_loop_of_fastseq_train(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same training part and options, both take the same steps: equal losses, bit for bit."""
    losses: dict[str, list[float]] = {"train": [], "bench": []}
    into = "train"
    loss = MODELS[model].loss

    def recorded(self: Any, batch: JaggedBatch) -> Tensor:
        value = loss(self, batch)
        if not value.is_meta:  # of the plan
            losses[into].append(float(value.detach()))
        return value

    monkeypatch.setattr(MODELS[model], "loss", recorded)
    params = throughput.reference_params(model, 8, batch_size=64) | {"epochs": 1}
    tree = {"models": {model: params}, "reader": {"local_path": str(data)}}
    config = parse_config(tree | {"writer": {"local_experiment_path": str(tmp_path)}})
    (outcome,) = experiment.train(config)
    assert outcome.result.steps == len(losses["train"]) > 2

    into = "bench"
    monkeypatch.setattr(throughput, "everything", leave_one_out)
    figures = throughput.train_throughput(model, data, 8, batch_size=64, seconds=0.3, warmup_seconds=0)
    steps = min(len(losses["train"]), figures["steps"])
    assert losses["bench"][:steps] == losses["train"][:steps]
    assert figures["first_loss"] == pytest.approx(losses["train"][0])


def test_bench_train_prints_one_json_line(data: Path, tmp_path: Path) -> None:
    options = ("--max-len", 6, "--stride", 2, "--batch-size", 32, "--loss", "bce", "--precision", "bf16")
    figures = bench(tmp_path, "train", "--model", "GRU4Rec", "--data", data, *options, "--seconds", 0.2)
    assert {"first_loss", "last_loss", "device", "peak_rss_mb", "config", "versions"} <= set(figures)
    assert [figures[key] for key in ("stride", "batch_size", "precision", "per_target")] == [2, 32, "bf16", False]
    changes = {"model": "GRU4Rec", "loss": "bce", "max_seq_len": 6, "window_stride": 2, "batch_size": 32}
    assert figures["config"] == throughput.REFERENCE_CONFIGURATIONS["GRU4Rec"] | {"reg_weight": 0.0} | changes
    assert figures["steps"] > 0 and figures["targets"] > 0 and figures["seconds"] >= 0.2
    assert figures["targets_per_s"] == pytest.approx(figures["targets"] / figures["seconds"], rel=0.02)
    assert figures["versions"]["fastseq"] and figures["data"]["events"] == 480


def test_warmup_is_a_run_of_its_own(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And per-target batches have one sequence a target."""
    limits: list[float | None] = []
    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda trainer: (limits.append(trainer.options.max_seconds), fit(trainer))[1])
    command = ("train", "--model", "Caser", "--data", data, "--max-len", 5, "--seconds", 0.2, "--warmup")
    figures = [bench(tmp_path, *command, 0), bench(tmp_path, *command, 0.1, "--per-target")]
    assert limits == [0.2, 0.1, 0.2]
    assert [(f["stride"], f["per_target"]) for f in figures] == [(5, False), (1, True)]


def test_bench_predict_prints_one_json_line(data: Path, tmp_path: Path) -> None:
    options = ("--model", "Caser", "--data", data, "--max-len", 5, "-k", 3, "--batch-size", 8, "--seconds", 0.1)
    figures = bench(tmp_path, "predict", *options)
    assert {"histories_per_s", "calls", "device", "peak_rss_mb", "versions"} <= set(figures)
    assert (figures["k"], figures["batch_size"], figures["config"]["model"]) == (3, 8, "Caser")
    assert figures["p50_ms"] <= figures["p99_ms"]
    code, out, _ = here("bench", "predict", *options, folder=tmp_path)
    assert code == 0 and "histories_per_s" in out


def test_mistakes_name_the_remedy(data: Path, tmp_path: Path) -> None:
    for options, message in (
        (("--data", "none.csv"), "none.csv"),
        (("--data", data, "--max-len", 5, "--stride", 6), "window_stride is 6"),
        (("--data", data, "--model", "BERT4Rec"), "expected one of SASRec, GRU4Rec, Caser"),
    ):
        err = refusal("bench", "train", *options, folder=tmp_path)
        assert message in err and "Traceback" not in err
