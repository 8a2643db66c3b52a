"""kill -9 at any moment, resume, and nothing shows."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastseq.models import MODELS
from fastseq.training import checkpoint
from fastseq.training.evaluation import evaluate
from fastseq.training.loop import Trainer
from fastseq.training.options import TrainingOptions
from fastseq.training.run import RunFolder, load

from .tiny import make_model, make_split
from .worker import PARAMS, train_to_the_end

KILLS = 30
EPOCHS = 100


def test_thirty_kills_leave_no_trace(tmp_path: Path) -> None:
    # A server that has imported everything forks the processes: each starts training within milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.worker"])

    def start(run_dir: Path | None, out: Path, checkpoint_every: float | None = 0.0) -> Any:
        arguments = (None if run_dir is None else str(run_dir), str(out), EPOCHS, checkpoint_every)
        process = context.Process(target=train_to_the_end, args=arguments)
        process.start()
        return process

    straight = start(None, tmp_path / "straight")
    straight.join(60)
    assert straight.exitcode == 0
    run = RunFolder(tmp_path / "run")
    out = tmp_path / "resumed"
    generator = random.Random(0)
    steps, temporary = [], 0
    for _ in range(KILLS):
        process = start(run.path, out)
        limit = time.monotonic() + 30
        before = run.last_path.stat().st_mtime_ns if run.last_path.exists() else 0
        while not (run.last_path.exists() and run.last_path.stat().st_mtime_ns > before):
            assert process.is_alive() and time.monotonic() < limit, "no step was taken"
            time.sleep(0.001)
        time.sleep(generator.uniform(0.0, 0.1))
        assert process.is_alive(), "finished before it was killed: raise EPOCHS"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        temporary += len(list(run.path.rglob("*.tmp")))
        for path in (run.last_path, run.best_path, run.ids_path):
            if path.exists():
                checkpoint.load(path)  # whole, or this raises
        steps.append(checkpoint.load(run.last_path)[1]["state"]["step"])
    assert steps == sorted(steps) and len(set(steps)) > KILLS // 2
    assert temporary > 0, "no kill came during a save: this test shows less than it says"
    last = start(run.path, out, None)
    last.join(60)
    assert last.exitcode == 0
    expected, found = load_file(tmp_path / "straight"), load_file(out)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    lines = run.read_metrics()
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    assert len(run.metrics_path.read_bytes().splitlines()) == EPOCHS


class Killed(BaseException):
    """Takes the place of kill -9 at a chosen instant."""


@pytest.mark.parametrize("moment", ["before best", "before the line", "before last", "after last"])
def test_every_instant_at_the_end_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    split = make_split()
    options = TrainingOptions(epochs=4, patience=2)
    whole = make_model(split, **PARAMS)
    expected = Trainer(whole, split, options, tmp_path / "whole").fit()
    trainer = Trainer(make_model(split, **PARAMS), split, options, tmp_path / "run")

    def dying(function: Callable[..., Any], when: str) -> Callable[..., Any]:
        calls = 0

        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2 and when == "before":
                raise Killed
            result = function(*arguments)
            if calls == 2 and when == "after":
                raise Killed
            return result

        return call

    owner, name, when = {
        "before best": (trainer, "_judge", "before"),
        "before the line": (trainer.run, "append_metrics", "before"),
        "before last": (trainer, "_save_last", "before"),
        "after last": (trainer, "_save_last", "after"),
    }[moment]
    monkeypatch.setattr(owner, name, dying(getattr(owner, name), when))
    with pytest.raises(Killed):
        trainer.fit()
    model = make_model(split, seed=5, **PARAMS)
    result = Trainer(model, split, options, tmp_path / "run", resume=True).fit()
    for key, tensor in whole.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    assert (result.best_epoch, result.best_value) == (expected.best_epoch, expected.best_value)
    timeless = [
        [
            {k: v for k, v in line.items() if k not in ("seconds", "targets_per_second", "validation_seconds")}
            for line in r.history
        ]
        for r in (result, expected)
    ]
    assert timeless[0] == timeless[1]


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    split = make_split()
    model = make_model(split)
    first = Trainer(model, split, TrainingOptions(epochs=2), tmp_path / "x").fit()
    again = make_model(split, seed=9)
    second = Trainer(again, split, TrainingOptions(epochs=2), tmp_path / "x", resume=True).fit()
    assert (second.stopped, second.steps, second.history) == ("finished", first.steps, first.history)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


SMALL: dict[str, dict[str, Any]] = {
    "SASRec": {"n_layers": 2, "n_heads": 2, "inner_size": 16, "attn_dropout_prob": 0.3, "max_seq_len": 10},
    "GRU4Rec": {"hidden_size": 8, "num_layers": 1, "max_seq_len": 10},
    "Caser": {"n_h": 2, "n_v": 2, "max_seq_len": 5},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("per_target", [False, True])
def test_every_model_resumes_inside_an_epoch_and_loads(tmp_path: Path, name: str, per_target: bool) -> None:
    split = make_split()
    data = split.interactions
    shared = {"embedding_size": 8, "dropout_prob": 0.3, "weight_decay": 0.01, "epochs": 2, "learning_rate": 0.01}

    def build(seed: int) -> Any:
        params = shared | SMALL[name] | {"neg_samples": 2, "batch_size": 60, "reg_weight": 0.01}
        return MODELS[name](params, {"n_users": data.n_users, "n_items": data.n_items}, seed=seed)

    options = TrainingOptions(per_target=per_target)
    whole, model = build(1), build(1)
    Trainer(whole, split, options).fit()
    trainer = Trainer(model, split, TrainingOptions(per_target=per_target, checkpoint_every_seconds=0), tmp_path / "x")
    step = trainer._step

    def dying(batch: Any) -> None:
        if trainer._state.step == trainer.total_steps - 3:
            raise Killed
        step(batch)

    trainer._step = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.fit()
    again = build(2)
    Trainer(again, split, options, tmp_path / "x", resume=True).fit()
    for key, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    loaded = load(tmp_path / "x")
    assert evaluate(loaded, split).metrics == evaluate(whole, split).metrics
