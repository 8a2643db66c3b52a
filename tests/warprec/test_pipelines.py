"""WarpRec's pipelines, whole and in processes of their own, on a few users of real data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.warprec.real import adapters, configuration, subset

from warprec.serving.servable import ServableModel  # isort: skip
from warprec.utils.registry import model_registry  # isort: skip

N_USERS = 20
TIMEOUT = 900  # seconds; a pipeline takes one or two minutes on two idle cores
# As published, and the three keys that WarpRec 2.2.8 requires beside them.
REFERENCE = """
Caser: {embedding_size: 64, n_h: 8, n_v: 4, dropout_prob: 0.5, weight_decay: 0.0, epochs: 3,
  learning_rate: 0.001, neg_samples: 1, reg_weight: 0.0, batch_size: 2048, max_seq_len: 20}
GRU4Rec: {embedding_size: 128, hidden_size: 128, num_layers: 1, dropout_prob: 0.2, weight_decay: 0.0001, epochs: 20,
  learning_rate: 0.001, neg_samples: 2, reg_weight: 0.0, batch_size: 2048, max_seq_len: 200}
SASRec: {embedding_size: 128, n_layers: 2, n_heads: 4, inner_size: 512, dropout_prob: 0.3, attn_dropout_prob: 0.3,
  learning_rate: 0.001, weight_decay: 0.0, epochs: 1, neg_samples: 1, reg_weight: 0.0, batch_size: 2048,
  max_seq_len: 200}
"""
MODELS: dict[str, dict[str, Any]] = yaml.safe_load(REFERENCE)
STRIDE = 20
NEW_NAMES = [str(adapters.custom_module(as_new_names=True))]
BOTH = [str(adapters.custom_module()), *NEW_NAMES]
SAVED = {"meta": {"save_model": True}}
# Small, and without dropout: WarpRec's own model must then report the same losses.
PLAIN = MODELS["GRU4Rec"] | {
    "dropout_prob": 0.0,
    "epochs": 3,
    "batch_size": 500,
    "embedding_size": 16,
    "hidden_size": 8,
}
SEARCH = MODELS["SASRec"] | {"window_stride": [5, STRIDE], "loss": ["bpr", "gbce"], "max_seq_len": 30}
# A pause after three epochs must come while some are left, also on a slow machine.
PAUSED = MODELS["Caser"] | {"epochs": 10, "batch_size": 500, "window_stride": STRIDE}
SWARM = {"GRU4Rec": PLAIN, "FastGRU4Rec": PLAIN, "FastSASRec": SEARCH, "FastCaser": PAUSED}
# A machine that is busy, or stopped for a minute, must not make Ray give a process up; nor others starve its workers.
PATIENCE = {
    "RAY_health_check_failure_threshold": "1000",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_worker_niceness": "0",
}
PAUSE = """
import os, signal
from warprec.utils.callback import WarpRecCallback

class Pause(WarpRecCallback):
    def on_trial_result(self, iteration, trials, trial, result, **info):
        if result["epoch"] == 2:  # once: a resumed search restores its callbacks too
            os.kill(os.getpid(), signal.SIGINT)
"""


INSTALLED = ("-c", "import fastseq.warprec; fastseq.warprec.install(); from warprec.run import main; main()")


def pipeline(name: str, folder: Path, config: dict[str, Any], start: tuple[str, ...] = ("-m", "warprec.run")) -> str:
    """Runs one of WarpRec's pipelines in ``folder`` and returns what it printed; it must end well and in time."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    # As a user starts it: what the tests set for themselves stays out.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("FASTSEQ_", "TRITON_"))}
    environment |= PATIENCE
    command = [sys.executable, *start, "-c", path.name, "-p", name]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # Ray's processes end with the one that started them
            raise
    assert process.returncode == 0, printed[-6000:]
    return printed


def epochs(folder: Path, model: str) -> list[list[dict[str, Any]]]:
    """What every trial of a model reported, epoch by epoch."""
    paths = sorted(folder.glob(f"runs/data/ray_results/*__{model}/*/result.json"))
    assert paths, f"no trial of {model} reported an epoch"
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]


def scores(folder: Path) -> dict[str, tuple[float, ...]]:
    """Test metrics by model, from the table that a pipeline writes."""
    (path,) = folder.glob("runs/data/evaluation/Overall_Results_*.tsv")
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return {model: tuple(map(float, values)) for model, _, *values in rows}


def saved(folder: Path, model: str) -> Path:
    """The checkpoint that a pipeline wrote."""
    (path,) = folder.glob(f"runs/data/serialized/{model}_*.pth")
    return path


def last_state(folder: Path, model: str) -> dict[str, Any]:
    """The training state of a trial after one of its epochs, optimizer and random state included."""
    path = Path(epochs(folder, model)[0][-1]["checkpoint_path"]) / "checkpoint.ckpt"
    return torch.load(path, weights_only=False)


@pytest.fixture(scope="module")
def data(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return subset(shared_data, tmp_path_factory.mktemp("data"), N_USERS)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after `train` of the reference configurations: WarpRec's batches by their names, windows by new ones."""
    folder = tmp_path_factory.mktemp("trained")
    models = {name: params | SAVED for name, params in MODELS.items()}
    models |= {f"Fast{name}": params | {"window_stride": STRIDE} | SAVED for name, params in MODELS.items()}
    pipeline("train", folder, configuration(data, models, BOTH))
    return folder


@pytest.mark.parametrize("name", [*MODELS, *(f"Fast{name}" for name in MODELS)])
def test_train_runs_the_reference_configurations(trained: Path, name: str) -> None:
    params = MODELS[name.removeprefix("Fast")]
    (trial,) = epochs(trained, name)
    assert [report["epoch"] for report in trial] == list(range(params["epochs"]))
    assert all(0 < report["loss"] < 1 and 0 <= report["nDCG@10"] <= 1 for report in trial)
    assert len({report["epoch_samples"] for report in trial}) == 1 and trial[0]["epoch_samples"] > 1500
    assert all(0 <= value <= 1 for value in scores(trained)[name])
    state = last_state(trained, name)
    assert state["optimizer_states"][0]["param_groups"][0]["fused"]  # WarpRec's own model has no such Adam
    assert (state["params"].get("window_stride") == STRIDE) == name.startswith("Fast")


def test_both_kinds_of_batches_count_the_same_targets(trained: Path) -> None:
    for name in MODELS:
        per_target, windows = (epochs(trained, model)[0][0]["epoch_samples"] for model in (name, f"Fast{name}"))
        assert per_target == windows


def test_a_saved_checkpoint_evaluates_to_the_scores_of_its_training(trained: Path, data: Path, tmp_path: Path) -> None:
    models = {name: params | {"meta": {"load_from": str(saved(trained, name))}} for name, params in MODELS.items()}
    pipeline("eval", tmp_path, configuration(data, models, BOTH))
    for name, values in scores(tmp_path).items():
        assert values == pytest.approx(scores(trained)[name], abs=1e-6)
    assert scores(tmp_path).keys() == MODELS.keys()


def test_design_runs_every_model_with_either_batches(data: Path, tmp_path: Path) -> None:
    models = {name: params | {"epochs": 1} for name, params in MODELS.items()}
    models |= {f"Fast{name}": params | {"window_stride": STRIDE} for name, params in models.items()}
    config = configuration(data, models, BOTH)
    printed = pipeline("design", tmp_path, config)
    assert printed.count("Evaluation completed for model") == len(models)


@pytest.mark.parametrize("name", MODELS)
def test_serving_loads_what_training_saved(trained: Path, name: str) -> None:
    path, answers = saved(trained, name), []
    for install in (False, True):
        if install:
            adapters.install()
        try:
            served = ServableModel.from_checkpoint(path)
        finally:
            adapters.uninstall()
        assert isinstance(served._model, adapters.Adapter) is install
        queries = [served.resolve(user_id=str(user), k=5) for user in range(1, 6)]
        answers.append(served.recommend(queries))
    for theirs, ours in zip(*answers, strict=True):
        assert [item["item_id"] for item in ours] == [item["item_id"] for item in theirs]
        assert [item["score"] for item in ours] == pytest.approx([item["score"] for item in theirs], abs=1e-5)


def test_cross_validated_searches_that_stop_early(data: Path, tmp_path: Path) -> None:
    """A search in a grid over two folds, by install() alone, as WarpRec's own models go through it."""
    grid = PLAIN | {"learning_rate": [0.001, 0.03], "early_stopping": {"monitor": "loss", "patience": 1}}
    windows = SEARCH | {"window_stride": 5, "loss": "gbce", "early_stopping": {"patience": 1}}
    config = configuration(data, {"GRU4Rec": grid, "SASRec": windows}, [])
    config["splitter"]["validation_splitting"] = {"strategy": "k_fold_cross_validation", "folds": 2}
    printed = pipeline("train", tmp_path, config, INSTALLED)
    trials = epochs(tmp_path, "GRU4Rec")
    assert len(trials) == 4 and all(trial[0]["config"].keys() == {*PLAIN, "fold"} for trial in trials)
    for name in config["models"]:
        assert f"CV HPO for {name} ended successfully" in printed
        (group, *_) = last_state(tmp_path, name)["optimizer_states"][0]["param_groups"]
        assert group["fused"]  # WarpRec's own model has no such Adam
    assert scores(tmp_path).keys() == config["models"].keys()


@pytest.fixture(scope="module")
def swarmed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swarmed")
    pipeline("swarm", folder, configuration(data, SWARM, NEW_NAMES))
    return folder


def test_swarm_reports_the_losses_of_warprecs_own_model(swarmed: Path) -> None:
    (theirs,), (ours,) = epochs(swarmed, "GRU4Rec"), epochs(swarmed, "FastGRU4Rec")
    assert len(theirs) == 3
    for key in ("loss", "nDCG@10"):
        assert [report[key] for report in ours] == pytest.approx([report[key] for report in theirs], rel=1e-4)
    assert scores(swarmed).keys() == SWARM.keys()


def test_a_search_goes_over_strides_and_losses(swarmed: Path) -> None:
    tried = [trial[0]["config"] for trial in epochs(swarmed, "FastSASRec")]
    pairs = {(config["window_stride"], config["loss"]) for config in tried}
    assert pairs == {(stride, loss) for stride in (5, STRIDE) for loss in ("bpr", "gbce")} and len(tried) == 4


def test_a_paused_training_on_windows_goes_on_as_if_it_had_not_been(swarmed: Path, data: Path, tmp_path: Path) -> None:
    config = configuration(data, {"FastCaser": PAUSED}, NEW_NAMES)
    callback = tmp_path / "pause.py"
    callback.write_text(PAUSE)
    config["general"]["callback"] = {"callback_path": str(callback), "callback_name": "Pause"}
    assert "has been paused" in pipeline("train", tmp_path, config)
    (before,) = epochs(tmp_path, "FastCaser")
    assert 3 <= len(before) < PAUSED["epochs"]
    del config["general"]["callback"]
    assert "Resuming run" in pipeline("train", tmp_path, config)
    (whole,), (resumed,) = epochs(swarmed, "FastCaser"), epochs(tmp_path, "FastCaser")
    assert len(whole) == PAUSED["epochs"]
    for key in ("epoch", "loss", "nDCG@10"):
        assert [report[key] for report in resumed] == [report[key] for report in whole]
    assert scores(tmp_path)["FastCaser"] == pytest.approx(scores(swarmed)["FastCaser"], rel=1e-6)


def test_the_registry_is_warprecs_again() -> None:
    assert model_registry.get_class("SASRec").__module__.startswith("warprec.")
