"""Callbacks: what they are told and when, what a failing one leaves behind, and what listening costs."""

from __future__ import annotations

import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fastseq.errors import ConfigError, TrainingError
from fastseq.training import (
    Callback,
    End,
    Evaluation,
    Progress,
    RunFolder,
    Start,
    Trainer,
    TrainingOptions,
    TrainResult,
)
from fastseq.training.distributed import Ranks
from fastseq.training.evaluation import evaluate
from fastseq.training.steps import EagerSteps

from .tiny import make_model, make_split, same_weights, train


class Log(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def on_start(self, start: Start) -> None:
        self.told.append(("start", start))

    def on_steps(self, progress: Progress) -> None:
        self.told.append(("steps", progress))

    def on_validation(self, step: int, evaluation: Evaluation) -> None:
        self.told.append(("validation", (step, evaluation)))

    def on_epoch(self, line: dict[str, Any]) -> None:
        self.told.append(("epoch", line))

    def on_end(self, end: End) -> None:
        self.told.append(("end", end))

    def of(self, event: str) -> list[Any]:
        return [what for name, what in self.told if name == event]

    def names(self) -> list[str]:
        return [name for name, _ in self.told]


class Failing(Log):
    """Fails in the event of a name, the n-th time."""

    def __init__(self, event: str, number: int = 1) -> None:
        super().__init__()
        self.event, self.number = event, number
        setattr(self, f"on_{event}", self.fail)

    def fail(self, *what: Any) -> None:
        self.number -= 1
        if self.number == 0:
            raise OSError(28, "No space left on device")


SELDOM: dict[str, Any] = {"progress_every_seconds": 1e9}


def test_order_and_contents(tmp_path: Path) -> None:
    split, log = make_split(), Log()
    options = TrainingOptions(epochs=3, validate_every=2, schedule="linear", **SELDOM)
    trainer = Trainer(make_model(split), split, options, tmp_path / "data" / "x", [log])
    saved: list[int] = []

    def tested(result: TrainResult) -> Evaluation:
        saved.append(len(log.told))
        return evaluate(trainer.model, split)

    result = trainer.fit(tested)
    epoch, validated = ["steps", "epoch"], ["steps", "validation", "epoch"]
    assert log.names() == ["start", *epoch, *validated, *validated, "end"] and saved == [9]

    (start,) = log.of("start")
    assert (start.model, start.epochs, start.total_steps, start.step) == ("Tiny", 3, trainer.total_steps, 0)
    assert start.params == trainer.model.get_params() and start.options == asdict(options)
    assert start.split == split.describe() and start.run is trainer.run and start.name == "data/x"
    settings = start.settings()
    assert settings["embedding_size"] == 8 and settings["options.schedule"] == "linear"
    assert settings["data.filters"] == "[]" and settings["options.patience"] is None

    steps = [step for progress in log.of("steps") for step in progress.steps]
    assert [step.number for step in steps] == list(range(1, trainer.total_steps + 1))
    assert [s.learning_rate for s in steps] == pytest.approx([0.01 * (1 - k / len(steps)) for k in range(len(steps))])
    assert (steps[0].loss, steps[-1].loss) == (result.first_loss, result.last_loss)
    assert log.of("epoch") == result.history == RunFolder.existing(tmp_path / "data" / "x").read_metrics()
    assert [x[0] for x in log.of("validation")] == [line["step"] for line in result.history[1:]]
    assert [x[1].metrics for x in log.of("validation")] == [line["validation"] for line in result.history[1:]]
    (end,) = log.of("end")
    assert end.result is result and end.evaluation["NDCG@10"] == evaluate(trainer.model, split)["NDCG@10"]
    assert end.error is None


def test_listening_changes_no_bit_and_waits_for_the_device_no_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are read once an epoch here, whether somebody listens or not."""
    split, reads, losses = make_split(), [0], EagerSteps.losses

    def counted(steps: EagerSteps) -> list[float]:
        reads[0] += 1
        return losses(steps)

    monkeypatch.setattr(EagerSteps, "losses", counted)
    models, listened = [], []
    for log in (None, Log()):
        reads[0] = 0
        model = make_model(split, dropout_prob=0.3)
        trainer = Trainer(model, split, TrainingOptions(epochs=2, **SELDOM), None, [] if log is None else [log])
        trainer.fit()
        models.append(model)
        assert reads == [2] and trainer.total_steps > 4
        listened.append(trainer.callbacks.heard)
        assert not trainer.callbacks.steps
    assert same_weights(*models) and listened == [False, True]

    class Deaf(Callback):
        def on_epoch(self, line: dict[str, Any]) -> None:
            assert not trainer.callbacks.steps

    trainer = Trainer(make_model(split), split, TrainingOptions(epochs=1, **SELDOM), None, [Deaf()])
    trainer.fit()
    assert not trainer.callbacks.heard


def test_time_in_callbacks_is_not_that_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Slow(Callback):
        def on_steps(self, progress: Progress) -> None:
            now[0] += 100.0

        on_start = on_epoch = on_steps  # type: ignore[assignment]

    split = make_split()
    options = TrainingOptions(epochs=2, validation_metric=None, progress_every_seconds=0.0)
    assert Trainer(make_model(split), split, options, None, [Slow()]).fit().seconds == 0.0


def test_patience(tmp_path: Path) -> None:
    split, log = make_split(), Log()
    options = TrainingOptions(epochs=9, patience=2, min_delta=1.0, **SELDOM)
    result = Trainer(make_model(split), split, options, tmp_path / "x", [log]).fit()
    assert result.stopped == "patience" and len(log.of("epoch")) == len(log.of("validation")) == 3
    assert log.names()[-1] == "end" and log.of("end")[0].result is result


@pytest.mark.parametrize("event", ["start", "steps", "validation", "epoch"])
def test_a_failing_callback_stops_training_and_the_checkpoint_stays(tmp_path: Path, event: str) -> None:
    """Another one is told of the end; a training that goes on ends with the weights of one that never failed."""
    split, options = make_split(), TrainingOptions(epochs=3, checkpoint_every_seconds=0, progress_every_seconds=0)
    whole, expected = train(split, options)
    log, failing = Log(), Failing(event, 1 if event == "start" else 2)
    trainer = Trainer(make_model(split), split, options, tmp_path / "x", [log, failing])
    message = rf"callback Failing\.on_{event} failed: OSError: .*No space left on device"
    with pytest.raises(TrainingError, match=message) as raised:
        trainer.fit()
    assert isinstance(raised.value.__cause__, OSError)
    assert log.names()[-1] == "end" and log.of("end")[0].error is raised.value and log.of("end")[0].result is None
    assert failing.of("end") == ([] if event == "start" else log.of("end"))
    assert trainer.run is not None and trainer.run.last_path.exists() == (event != "start")
    assert (str(tmp_path / "x") in str(raised.value)) == (event != "start")

    again = Log()
    resumed = Trainer(
        make_model(split, seed=1 if event == "start" else 9), split, options, tmp_path / "x", [again], resume=True
    )
    assert resumed.fit().steps == expected.steps and same_weights(resumed.model, whole)
    steps = [step.number for progress in log.of("steps") + again.of("steps") for step in progress.steps]
    assert sorted(set(steps)) == list(range(1, expected.steps + 1))
    assert again.of("start")[0].step == {"start": 0, "steps": 1}.get(event, 2 * expected.steps // 3)


def test_a_failure_at_the_end(tmp_path: Path) -> None:
    split, log = make_split(), Log()
    model = make_model(split)
    with pytest.raises(TrainingError, match=r"Failing\.on_end failed: OSError: .*Training is over"):
        Trainer(model, split, TrainingOptions(epochs=1), tmp_path / "x", [Failing("end"), log]).fit()
    assert log.names()[-1] == "end" and log.of("end")[0].error is None
    assert RunFolder.existing(tmp_path / "x").best_path.exists()

    def failing_test(result: TrainResult) -> Evaluation:
        raise ValueError("no test")

    with (
        pytest.warns(UserWarning, match=r"Failing\.on_end failed"),
        pytest.raises(ValueError, match="no test"),
    ):
        Trainer(model, split, TrainingOptions(epochs=1), None, [Failing("end"), log]).fit(failing_test)
    assert isinstance(log.of("end")[1].error, ValueError)


def test_interrupted_inside_an_epoch_every_step_is_told_once(tmp_path: Path) -> None:
    split, log = make_split(), Log()
    options = TrainingOptions(epochs=3, **SELDOM)

    class Interrupted(Trainer):
        def _step(self, work: Any) -> None:
            super()._step(work)
            if self.state.step == 7:
                os.kill(os.getpid(), signal.SIGINT)

    result = Interrupted(make_model(split), split, options, tmp_path / "x", [log]).fit()
    assert (result.stopped, result.steps, log.of("end")[0].result) == ("interrupted", 7, result)
    second = Trainer(make_model(split), split, options, tmp_path / "x", [log], resume=True)
    second.fit()
    steps = [step.number for progress in log.of("steps") for step in progress.steps]
    assert steps == list(range(1, second.total_steps + 1))
    assert [start.step for start in log.of("start")] == [0, 7]
    assert [line["epoch"] for line in log.of("epoch")] == [1, 2, 3]


def test_only_rank_0_reports_and_only_callbacks_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_split()
    with pytest.raises(ConfigError, match="callbacks has <built-in function print>"):
        Trainer(make_model(split), split, callbacks=[print])  # type: ignore[list-item]

    class Second(Ranks):
        """The second of two processes, which need nothing of each other here."""

        def agree(self, said: Any) -> None:
            pass

    for rank, heard in ((0, True), (1, False)):
        monkeypatch.setattr(Ranks, "join", lambda device, rank=rank: Second(rank, 2))
        assert Trainer(make_model(split), split, callbacks=[Log()]).callbacks.heard is heard


def test_callbacks_of_an_iterator_are_told_and_one_alone_is_refused() -> None:
    log = Log()
    split = make_split()
    Trainer(make_model(split), split, TrainingOptions(epochs=1), callbacks=iter([log])).fit()  # type: ignore[arg-type]
    assert log.names()[0] == "start" and log.names()[-1] == "end" and "steps" in log.names()
    with pytest.raises(ConfigError, match=r"callbacks is a Log, expected a list of them: \[\.\.\.\]"):
        Trainer(make_model(split), split, TrainingOptions(epochs=1), callbacks=log)  # type: ignore[arg-type]
