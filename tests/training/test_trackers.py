"""Trackers: TensorBoard's files as it reads them itself, MLflow and Weights & Biases with and without packages."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastseq.errors import ConfigError, TrainingError
from fastseq.training import (
    Callback,
    End,
    Evaluation,
    MLflow,
    RunFolder,
    Start,
    TensorBoard,
    Tracker,
    Trainer,
    TrainingOptions,
    TrainResult,
    WandB,
    evaluate,
    trackers,
)
from fastseq.training.callbacks import Progress

from .tiny import make_model, make_split

SPLIT = make_split()
OPTIONS = TrainingOptions(epochs=2, schedule="linear", progress_every_seconds=0.0, checkpoint_every_seconds=0.0)


class Dying(Callback):
    """Ends the training after a step, before the checkpoint of it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_steps(self, progress: Progress) -> None:
        if progress.step == self.step:
            raise KeyboardInterrupt


def fit(tracker: Tracker, run_dir: Path | None, *others: Callback, resume: bool = False, **how: Any) -> TrainResult:
    trainer = Trainer(make_model(SPLIT), SPLIT, OPTIONS, run_dir, [tracker, *others], resume=resume, **how)
    return trainer.fit(lambda result: evaluate(trainer.model, SPLIT))


def expected(result: TrainResult) -> dict[str, list[tuple[int, float]]]:
    """What every tracker must hold of a run, but for losses of steps and times."""
    ends = [line["step"] for line in result.history]
    found = {"validation/NDCG@10": [(line["step"], line["validation"]["NDCG@10"]) for line in result.history]}
    found["epoch/loss"] = [(line["step"], line["loss"]) for line in result.history]
    rates = [0.01 * (1 - (n - 1) / result.steps) for n in range(1, result.steps + 1)]
    found["train/learning_rate"] = list(enumerate(rates, 1))
    return found | {"epoch/epoch": list(zip(ends, [1.0, 2.0], strict=True))}


def check(held: Mapping[str, list[tuple[int, float]]], result: TrainResult, every: int = 1) -> None:
    for name, values in expected(result).items():
        wanted = [(step, value) for step, value in values if not name.startswith("train/") or step % every == 0]
        assert [step for step, _ in held[name]] == [step for step, _ in wanted], name
        assert [value for _, value in held[name]] == pytest.approx([value for _, value in wanted]), name
    assert held["train/loss"][0] == (
        every,
        pytest.approx(result.first_loss) if every == 1 else held["train/loss"][0][1],
    )
    assert [step for step, _ in held["test/NDCG@10"]] == [result.steps]


# TensorBoard.


def scalars(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], Any]:
    """What TensorBoard shows of a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(folder), {"scalars": 0, "tensors": 0})
    read.Reload()
    return {tag: [(x.step, x.value) for x in read.Scalars(tag)] for tag in read.Tags()["scalars"]}, read


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    result = fit(TensorBoard(tmp_path / "board", every_steps=1), None)
    held, read = scalars(tmp_path / "board")
    check(held, result)
    assert held["best/NDCG@10"] == [(result.steps, pytest.approx(result.best_value))]
    assert b"embedding_size" in read.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]
    seldom = fit(TensorBoard(tmp_path / "seldom", every_steps=3), None)
    check(scalars(tmp_path / "seldom")[0], seldom, every=3)


def test_tensorboard_goes_on_in_the_run_folder_and_begins_anew(tmp_path: Path) -> None:
    """The steps that a resumed run takes again are there once; an overwritten run leaves nothing."""
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    run = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt):
        fit(TensorBoard(every_steps=1), run, Dying(5))
    result = fit(TensorBoard(every_steps=1), run, resume=True)
    check(scalars(run / "tensorboard")[0], result)
    assert not RunFolder.existing(run).trackers_path.exists()
    again = fit(TensorBoard(every_steps=1), run, overwrite=True)
    check(scalars(run / "tensorboard")[0], again)
    assert len(list((run / "tensorboard").iterdir())) == 2  # of the run, and of its hyperparameters


def test_tensorboard_needs_a_place() -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    with pytest.raises(TrainingError, match=r"TensorBoard\.on_start failed: ConfigError: there is no run folder"):
        fit(TensorBoard(), None)


# MLflow and Weights & Biases, in place of which these stand.


@dataclass
class Server:
    """Runs by their ids."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def begin(self, **about: Any) -> str:
        identity = f"run{len(self.runs)}"
        self.runs[identity] = {"metrics": {}, "params": {}, "files": [], "calls": 0, **about}
        return identity

    def add(self, identity: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.runs[identity]["metrics"].setdefault(name, []).append((step, value))


def fake_mlflow(server: Server) -> SimpleNamespace:
    class Client:
        def __init__(self, tracking_uri: str | None, registry_uri: str | None) -> None:
            self.uri = tracking_uri

        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            return name

        def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
            identity = server.begin(experiment=experiment, tags=tags, name=run_name, uri=self.uri, status="RUNNING")
            return SimpleNamespace(info=SimpleNamespace(run_id=identity))

        def update_run(self, identity: str, status: str) -> None:
            server.runs[identity]["status"] = status

        set_terminated = update_run

        def log_batch(self, identity: str, metrics: Any = (), params: Any = ()) -> None:
            assert len(metrics) <= 1000 and len(params) <= 100, "more than MLflow takes at a time"
            server.runs[identity]["calls"] += bool(metrics)
            for name, value in params:
                assert name not in server.runs[identity]["params"], "MLflow lets no parameter change"
                server.runs[identity]["params"][name] = value
            for name, value, _, step in metrics:
                assert "@" not in name
                server.add(identity, {name: value}, step)

        def log_artifact(self, identity: str, path: str) -> None:
            server.runs[identity]["files"].append(Path(path).name)

    entities = SimpleNamespace(Metric=lambda *a: a, Param=lambda *a: a)
    return SimpleNamespace(MlflowClient=Client, entities=entities, get_tracking_uri=lambda: "default")


def fake_wandb(server: Server) -> SimpleNamespace:
    class Run:
        def __init__(self, **about: Any) -> None:
            identity = about.pop("id")
            self.id = server.begin(**about) if identity is None else identity
            self.about = server.runs[self.id]

        def define_metric(self, name: str, **how: Any) -> None:
            self.about[name] = how

        def log(self, values: dict[str, Any]) -> None:
            server.add(self.id, {name: value for name, value in values.items() if name != "step"}, values["step"])

        def log_artifact(self, artifact: Any) -> None:
            self.about["files"] += artifact.files

        def finish(self, exit_code: int) -> None:
            self.about["exit_code"] = exit_code

    class Artifact:
        def __init__(self, name: str, type: str) -> None:
            self.files: list[str] = []

        def add_file(self, path: str) -> None:
            self.files.append(Path(path).name)

    return SimpleNamespace(init=Run, Settings=lambda **x: x, Artifact=Artifact)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """What both of the stand-ins write to."""
    server = Server()
    monkeypatch.setitem(sys.modules, "mlflow", fake_mlflow(server))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(server))  # type: ignore[arg-type]
    return server


def test_mlflow(server: Server, tmp_path: Path) -> None:
    tracker = MLflow("E", "http://there", tags={"a": "b"}, save_artifacts=True, every_steps=1)
    result = fit(tracker, tmp_path / "data" / "x")
    run = server.runs["run0"]
    check({name.replace("_at_", "@"): values for name, values in run["metrics"].items()}, result)
    assert (run["experiment"], run["name"], run["uri"], run["tags"]) == ("E", "data/x", "http://there", {"a": "b"})
    assert run["status"] == "FINISHED" and run["params"]["embedding_size"] == "8" and run["calls"] == 1
    assert set(run["files"]) == {
        "metrics.jsonl", "curve.png", "ids.safetensors", "best.safetensors"
    }  # fmt: skip


def test_wandb(server: Server, tmp_path: Path) -> None:
    excludes = ["device", "epoch/seconds"]
    tracker = WandB("P", "T", "G", "offline", "a key", excludes, upload_checkpoints=True, every_steps=1)
    result = fit(tracker, tmp_path / "data" / "x")
    run = server.runs["run0"]
    check(run["metrics"], result)
    about = ("P", "T", "G", "offline", "data/x")
    assert tuple(run[key] for key in ("project", "entity", "group", "mode", "name")) == about
    assert run["dir"] == str(tmp_path / "data" / "x") and run["settings"]["api_key"] == "a key"
    assert run["config"]["embedding_size"] == 8 and not {*run["config"], *run["metrics"]} & set(excludes)
    assert run["*"] == {"step_metric": "step"} and run["exit_code"] == 0 and run["files"] == ["best.safetensors"]


@pytest.mark.parametrize("kind", [MLflow, WandB])
def test_a_resumed_run_goes_on_in_that_of_the_tracker(server: Server, tmp_path: Path, kind: Any) -> None:
    def ended() -> list[Any]:
        return [run.get("status", run.get("exit_code")) for run in server.runs.values()]

    class Interrupted(Trainer):
        def validate(self) -> Evaluation:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
            return super().validate()

    run = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt):
        fit(kind(every_steps=1), run, Dying(5))
    assert ended() == ["FAILED" if kind is MLflow else 1]
    Interrupted(make_model(SPLIT), SPLIT, OPTIONS, run, [kind(every_steps=1)], resume=True).fit()
    assert ended() == ["KILLED" if kind is MLflow else 130]
    result = fit(kind(every_steps=1), run, resume=True)
    assert ended() == ["FINISHED" if kind is MLflow else 0]
    losses = server.runs["run0"]["metrics"]["train/loss"]
    assert sorted({step for step, _ in losses}) == list(range(1, result.steps + 1))
    assert len(set(losses)) == result.steps, "a step that is taken again has the same loss"
    fit(kind("another", every_steps=1), run, resume=True)
    assert len(server.runs) == 2, "another place has a run of its own"
    fit(kind(), run, overwrite=True)
    assert len(server.runs) == 3, "and so has an overwritten run"
    fit(kind(), None)
    assert len(server.runs) == 4


def test_mlflow_sends_few_batches(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """One a few seconds, and one where there is much; the last at the end."""
    monkeypatch.setattr(MLflow, "ROWS", 7)
    fit(MLflow(every_steps=1), None)
    run = server.runs["run0"]
    rows = sum(map(len, run["metrics"].values()))
    assert rows / 8 < run["calls"] < rows / 5


def test_another_tracker_is_three_methods(tmp_path: Path) -> None:
    class Plain(Tracker):
        place = "plain"

        def open(self, start: Start, identity: str | None) -> str:
            self.rows: list[str] = []
            return identity or "first"

        def log(self, values: Mapping[str, float], step: int) -> None:
            self.rows += values

        def close(self, end: End) -> None:
            self.rows.append("closed")

    tracker = Plain()
    fit(tracker, tmp_path / "x")
    assert tracker.rows[-1] == "closed" and "test/NDCG@10" in tracker.rows
    assert RunFolder.existing(tmp_path / "x").read_trackers() == {"plain": "first"}


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [(TensorBoard, "torch.utils.tensorboard", "tensorboard"), (MLflow, "mlflow", "mlflow"), (WandB, "wandb", "wandb")],
)
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, kind: Any, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs the package {extra} .*pip install 'fastseq-rec\[{extra}\]'"):
        kind()


def test_arguments_are_checked(server: Server) -> None:
    with pytest.raises(ConfigError, match="every_steps is 0, expected an integer >= 1"):
        MLflow(every_steps=0)
    with pytest.raises(ConfigError, match="mode is 'off', expected"):
        WandB(mode="off")


# With their packages.


def test_the_real_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the package mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="mlflow without sqlalchemy keeps no runs on this machine")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/runs.db"
    with pytest.raises(KeyboardInterrupt):
        fit(MLflow("E", uri, every_steps=1), tmp_path / "x", Dying(5))
    result = fit(MLflow("E", uri, every_steps=1), tmp_path / "x", resume=True)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("E").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["embedding_size"] == "8"
    history = {
        name.replace("_at_", "@"): sorted({(x.step, x.value) for x in client.get_metric_history(run.info.run_id, name)})
        for name in run.data.metrics
    }
    check(history, result)


def test_the_real_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(KeyboardInterrupt):
        fit(WandB(mode="offline", every_steps=1), tmp_path / "x", Dying(5))
    fit(WandB(mode="offline", every_steps=1), tmp_path / "x", resume=True)
    files = sorted((tmp_path / "x" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1, "two parts of one run"
    assert b"validation/NDCG@10" in files[1].read_bytes()


def test_importing_training_imports_no_tracker() -> None:
    from tests import run_python

    run_python(
        "-c",
        "import sys, fastseq.training\n"
        "assert not {'tensorboard', 'torch.utils.tensorboard', 'mlflow', 'wandb'} & sys.modules.keys()",
    )
    assert trackers.TensorBoard is TensorBoard
