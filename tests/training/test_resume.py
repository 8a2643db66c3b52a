"""kill -9 at any moment, resume, and nothing shows."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastseq.errors import CheckpointError, ConfigError
from fastseq.models import MODELS
from fastseq.ops.philox import STREAM
from fastseq.training import checkpoint
from fastseq.training.callbacks import Progress
from fastseq.training.evaluation import Evaluation, evaluate
from fastseq.training.loop import Trainer
from fastseq.training.options import TrainingOptions, Updates
from fastseq.training.run import RunFolder, load
from tests.models.small import small_params

from .tiny import OnSteps, make_model, make_split, same_weights, train
from .worker import PARAMS, train_to_the_end

# os.fsync is called before and after os.replace in every write of a file: even calls follow the rename.
KILLS = [(name, number) for name in ("step", "fsync", "replace") for number in (1, 2, 3, 4, 7)]


def start(epochs: int, out: Path, run: RunFolder | None, every: float | None = 0.0, **kill: Any) -> BaseProcess:
    """Trains in a process forked by a server that has imported everything: it takes steps within milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.worker"])
    folder = None if run is None else str(run.path)
    process = context.Process(target=train_to_the_end, args=(folder, str(out), epochs, every), kwargs=kill)
    process.start()
    return process


def finish(epochs: int, out: Path, run: RunFolder | None) -> None:
    process = start(epochs, out, run, None)
    process.join(120)
    assert process.exitcode == 0


def steps_saved(run: RunFolder) -> int:
    """Steps in ``last``, 0 without one. Every checkpoint must be whole."""
    for path in (run.last_path, run.best_path, run.ids_path):
        if path.exists():
            checkpoint.load(path)  # whole, or this raises
    return checkpoint.load(run.last_path)[1]["state"]["step"] if run.last_path.exists() else 0


def assert_no_trace(tmp_path: Path, run: RunFolder, epochs: int) -> None:
    """Resumes ``run`` to its end: the weights and the metrics are those of a run that was never stopped."""
    finish(epochs, tmp_path / "straight", None)
    finish(epochs, tmp_path / "resumed", run)
    expected, resumed = load_file(tmp_path / "straight"), load_file(tmp_path / "resumed")
    for name, tensor in expected.items():
        assert torch.equal(resumed[name], tensor), name
    assert [line["epoch"] for line in run.read_metrics()] == list(range(1, epochs + 1))
    assert len(run.metrics_path.read_bytes().splitlines()) == epochs


@pytest.mark.slow
def test_kills_at_steps_and_inside_writes_leave_no_trace(tmp_path: Path) -> None:
    run, epochs = RunFolder(tmp_path / "run"), 15
    steps, temporary = [], 0
    for name, number in KILLS:
        process = start(epochs, tmp_path / "resumed", run, kill_at=(name, number))
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, f"finished before call {number} of {name}: raise epochs"
        temporary += len(list(run.path.rglob("*.tmp")))
        steps.append(steps_saved(run))
    assert steps == sorted(steps) and len(set(steps)) > len(KILLS) // 2
    assert temporary > 0, "no kill came during a save"
    assert_no_trace(tmp_path, run, epochs)


@pytest.mark.slow
def test_thirty_random_kills_leave_no_trace(tmp_path: Path) -> None:
    run, epochs, generator = RunFolder(tmp_path / "run"), 100, random.Random(0)
    steps = []
    for _ in range(30):
        before = run.last_path.stat().st_mtime_ns if run.last_path.exists() else 0
        process = start(epochs, tmp_path / "resumed", run)
        limit = time.monotonic() + 120
        while process.is_alive() and not (run.last_path.exists() and run.last_path.stat().st_mtime_ns > before):
            assert time.monotonic() < limit, "no step was taken"
            time.sleep(0.001)
        time.sleep(generator.uniform(0.0, 0.1))
        process.kill()
        process.join()
        if process.exitcode == 0:  # trained to the end first
            break
        assert process.exitcode == -signal.SIGKILL
        steps.append(steps_saved(run))
    assert steps == sorted(steps)
    assert_no_trace(tmp_path, run, epochs)


class Killed(BaseException):
    """Stands for kill -9 between two calls."""


@pytest.mark.parametrize("moment", ["before best", "before the line", "before last", "after last"])
def test_every_instant_at_the_end_of_an_epoch(tmp_path: Path, moment: str) -> None:
    """The second epoch of four: its validation, line and ``last`` come in this order."""
    split = make_split()
    options = TrainingOptions(epochs=4, patience=2, progress_every_seconds=0.0)
    whole, expected = train(split, options, tmp_path / "whole", **PARAMS)

    class DyingTrainer(Trainer):
        def validate(self) -> Evaluation:
            evaluation = super().validate()
            if moment == "before best" and self.state.epoch == 1:
                raise Killed
            return evaluation

        def _save_last(self) -> None:
            if moment == "before last" and self.state.epoch == 2:
                raise Killed
            super()._save_last()

    class DyingFolder(RunFolder):
        def append_metrics(self, record: Mapping[str, Any]) -> int:
            if moment == "before the line" and record["epoch"] == 2:
                raise Killed
            return super().append_metrics(record)

    def die(progress: Progress) -> None:
        if moment == "after last" and progress.epoch == 3:
            raise Killed

    trainer = DyingTrainer(make_model(split, **PARAMS), split, options, DyingFolder(tmp_path / "run"), [OnSteps(die)])
    with pytest.raises(Killed):
        trainer.fit()
    model, result = train(split, options, tmp_path / "run", seed=5, resume=True, **PARAMS)
    assert same_weights(model, whole)
    assert (result.best_epoch, result.best_value) == (expected.best_epoch, expected.best_value)
    timed = ("seconds", "targets_per_second", "validation_seconds")
    timeless = [[{k: v for k, v in line.items() if k not in timed} for line in r.history] for r in (result, expected)]
    assert timeless[0] == timeless[1]


def test_the_sample_of_validation_is_that_of_the_run(tmp_path: Path) -> None:
    split = make_split()
    ten = TrainingOptions(epochs=2, validation_users=10)
    _, result = train(split, ten, tmp_path / "x", **PARAMS)
    of = len(split.part("validation"))
    assert [line["validation_sample"] for line in result.history] == [{"users": 10, "of": of, "seed": 42}] * 2
    train(split, replace(ten, epochs=3), tmp_path / "x", resume=True, **PARAMS)
    with pytest.raises(CheckpointError, match="validation_users is 10 in the checkpoint and None here"):
        train(split, replace(ten, validation_users=None), tmp_path / "x", resume=True, **PARAMS)
    with pytest.raises(ConfigError, match="validation_users is 0, expected an integer >= 1"):
        TrainingOptions(validation_users=0)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    split = make_split()
    model, first = train(split, TrainingOptions(epochs=2), tmp_path / "x")
    again, second = train(split, TrainingOptions(epochs=2), tmp_path / "x", seed=9, resume=True)
    assert (second.stopped, second.steps, second.history) == ("finished", first.steps, first.history)
    assert same_weights(again, model)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("per_target", "updates"), [(False, "dense"), (True, "dense"), (False, "rows")])
def test_every_model_resumes_inside_an_epoch_and_loads(
    tmp_path: Path, name: str, per_target: bool, updates: Updates
) -> None:
    split = make_split()
    data = split.interactions
    changes = {"dropout_prob": 0.3, "weight_decay": 0.01, "epochs": 2, "neg_samples": 2, "reg_weight": 0.01}

    def build(seed: int) -> Any:
        params = small_params(name, **changes, **({"n_layers": 2} if name == "SASRec" else {}))
        return MODELS[name](params, {"n_users": data.n_users, "n_items": data.n_items}, seed=seed)

    options = TrainingOptions(per_target=per_target, updates=updates)
    whole, model = build(1), build(1)
    Trainer(whole, split, options).fit()

    def die(progress: Progress) -> None:  # after the step, before its checkpoint
        if progress.step == progress.total_steps - 2:
            raise Killed

    often: dict[str, Any] = {"checkpoint_every_seconds": 0, "progress_every_seconds": 0}
    every_step = TrainingOptions(per_target=per_target, updates=updates, **often)
    trainer = Trainer(model, split, every_step, tmp_path / "x", [OnSteps(die)])
    with pytest.raises(Killed):
        trainer.fit()
    again = build(2)
    Trainer(again, split, options, tmp_path / "x", resume=True).fit()
    assert same_weights(again, whole)
    loaded = load(tmp_path / "x")
    assert evaluate(loaded, split).metrics == evaluate(whole, split).metrics


@pytest.mark.parametrize("stream", [None, STREAM - 1, STREAM + 1])
def test_masks_of_another_stream_are_not_mixed(tmp_path: Path, stream: int | None) -> None:
    """``last`` of a release whose seeds give other masks: not resumed, and its weights load."""
    split = make_split()
    info = {"n_users": split.interactions.n_users, "n_items": split.interactions.n_items}
    params, options = small_params("GRU4Rec", epochs=1), TrainingOptions()
    model = MODELS["GRU4Rec"](params, info)
    Trainer(model, split, options, tmp_path / "x").fit()
    last = RunFolder(tmp_path / "x", resume=True).last_path
    tensors, metadata = checkpoint.load(last)
    assert metadata.pop("stream") == STREAM
    checkpoint.save(last, tensors, metadata if stream is None else {**metadata, "stream": stream})
    with pytest.raises(CheckpointError, match=rf"random stream {stream or 1}, .* stream {STREAM}: .*; train anew, or"):
        Trainer(MODELS["GRU4Rec"](params, info), split, options, tmp_path / "x", resume=True)
    for path in (last, tmp_path / "x"):
        assert evaluate(load(path), split).metrics == evaluate(model, split).metrics
