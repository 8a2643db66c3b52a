"""The training loop: what a step does, schedules, early stopping, errors, files."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq.data.batch import JaggedBatch
from fastseq.data.readers import from_sequences
from fastseq.data.split import Split, leave_one_out
from fastseq.errors import CheckpointError, ConfigError, DataError, TrainingError
from fastseq.training.callbacks import Progress
from fastseq.training.distributed import Ranks
from fastseq.training.evaluation import Evaluation, evaluate
from fastseq.training.loop import Trainer
from fastseq.training.metrics import METRICS
from fastseq.training.options import TrainingOptions, learning_rate_factor
from fastseq.training.run import RunFolder

from .tiny import OnSteps, Tiny, make_model, make_split, same_weights, train


@pytest.fixture
def split() -> Split:
    return make_split()


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize(("schedule", "warmup"), [("constant", 0), ("cosine", 3)])
def test_equals_a_loop_written_out(split: Split, clip: float | None, schedule: Any, warmup: int) -> None:
    options = TrainingOptions(
        epochs=2, seed=7, clip_norm=clip, schedule=schedule, warmup_steps=warmup, validation_metric=None
    )
    params: dict[str, Any] = {"dropout_prob": 0.3, "weight_decay": 0.01, "reg_weight": 0.1}
    trainer = Trainer(make_model(split, **params), split, options)
    model = make_model(split, **params)
    optimizer = torch.optim.Adam(model.parameter_groups(), lr=model.learning_rate, fused=True)
    model.train()
    step = targets = 0
    for epoch in range(2):
        for batch in trainer.loader.batches(epoch):
            model.set_rng(7, step)
            optimizer.zero_grad()
            loss = model.loss(batch)
            loss.backward()
            if clip is not None:
                norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.grad.mul_(min(1.0, clip / (norm.item() + 1e-6)))
            for group in optimizer.param_groups:
                rate = learning_rate_factor(schedule, step, trainer.total_steps, warmup)
                group["lr"] = model.learning_rate * rate
            optimizer.step()
            step += 1
            targets += batch.n_targets
    result = trainer.fit()
    assert (result.stopped, result.steps, result.targets) == ("finished", step, targets)
    assert result.steps == trainer.total_steps > 5
    assert targets == 2 * (split.n_train - sum(split.train_stop > split.interactions.offsets[:-1]))
    for name, tensor in weights(model).items():
        tolerance = 0.0 if clip is None else 1e-5  # the norm is summed in another order
        torch.testing.assert_close(trainer.model.state_dict()[name], tensor, rtol=tolerance, atol=tolerance)
    assert result.last_loss == pytest.approx(loss.item(), rel=1e-4)


def test_learning_rate_schedules() -> None:
    def rates(schedule: Any, warmup: int) -> list[float]:
        return [learning_rate_factor(schedule, step, 10, warmup) for step in range(10)]

    assert rates("constant", 0) == [1.0] * 10
    assert rates("constant", 4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates("linear", 0) == pytest.approx([1 - s / 10 for s in range(10)])
    assert rates("linear", 5)[4:] == pytest.approx([1.0, 1.0, 0.8, 0.6, 0.4, 0.2])
    assert rates("cosine", 0) == pytest.approx([(1 + math.cos(math.pi * s / 10)) / 2 for s in range(10)])
    assert rates("cosine", 2)[2] == 1.0 and rates("cosine", 2)[9] < 0.04


def test_training_learns_and_same_seed_is_same_bits() -> None:
    split = make_split(n_users=150)
    results, final = [], []
    for seed in (3, 3, 4):
        model = make_model(split, learning_rate=0.03)
        before = evaluate(model, split)["NDCG@10"]
        results.append(Trainer(model, split, TrainingOptions(epochs=6, seed=seed, validation_metric=None)).fit())
        final.append(weights(model))
        assert evaluate(model, split)["NDCG@10"] > 2 * before
        assert not model.training
    assert same(final[0], final[1]) and not same(final[0], final[2])
    assert results[0].history[-1]["loss"] < 0.8 * results[0].history[0]["loss"]


def test_bf16_is_autocast_with_float32_weights(split: Split) -> None:
    seen: list[torch.dtype] = []

    class Watched(Tiny):
        def encode(self, batch: JaggedBatch) -> Tensor:
            h = super().encode(batch)
            if self.training:
                seen.append(h.dtype)
            return h

    info = {"n_users": split.interactions.n_users, "n_items": split.interactions.n_items}
    for precision, expected in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        seen.clear()
        model = Watched({}, info)
        result = Trainer(model, split, TrainingOptions(epochs=1, precision=precision)).fit()  # type: ignore[arg-type]
        assert set(seen) == {expected}
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert result.last_loss is not None and math.isfinite(result.last_loss)


def test_early_stopping_keeps_the_best_weights(split: Split, tmp_path: Path) -> None:
    script = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.305, 5: 0.1, 6: 0.9}

    class Scripted(Trainer):
        def validate(self) -> Evaluation:
            kept.append(weights(self.model))
            evaluation = super().validate()
            evaluation.metrics["NDCG@10"] = script[len(kept)]
            return evaluation

    for run_dir in (tmp_path / "x", None):
        kept: list[dict[str, Tensor]] = []
        model = make_model(split)
        trainer = Scripted(model, split, TrainingOptions(epochs=9, patience=3, min_delta=0.01), run_dir)
        result = trainer.fit()
        assert (result.stopped, result.epochs) == ("patience", 5)
        assert (result.best_epoch, result.best_value, result.metric) == (2, 0.3, "NDCG@10")
        assert same(weights(model), kept[1]) and not same(kept[1], kept[4])
        assert "no improvement in 3 validations; best NDCG@10 0.3000, epoch 2" in result.message


def test_grace_period_and_validate_every(split: Split) -> None:
    def epochs(**options: Any) -> list[int]:
        _, result = train(split, TrainingOptions(epochs=8, min_delta=1.0, **options))
        return [record["epoch"] for record in result.history if "validation" in record]

    assert epochs() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert epochs(validate_every=3) == [3, 6, 8]
    assert epochs(patience=2) == [1, 2, 3]
    assert epochs(patience=2, grace_period=4) == [1, 2, 3, 4, 5, 6]


def test_validation_ranks_as_the_options_say(split: Split) -> None:
    how: dict[str, Any] = {"protocol": "sampled", "n_negatives": 5, "mask_seen": "history", "history": "training"}
    model, result = train(split, TrainingOptions(epochs=1, evaluation_seed=3, **how))
    want = evaluate(model, split, "validation", seed=3, **how).metrics
    assert result.history[0]["validation"] == want == result.history[-1]["validation"]
    assert want != evaluate(model, split, "validation").metrics


def test_files_and_progress(split: Split, tmp_path: Path) -> None:
    calls: list[Progress] = []
    options = TrainingOptions(epochs=3, progress_every_seconds=0.0, validation_metric="hitrate@5")
    trainer = Trainer(make_model(split), split, options, tmp_path / "x", [OnSteps(calls.append)])
    result = trainer.fit()
    run = RunFolder.existing(tmp_path / "x")
    lines = run.read_metrics()
    assert lines == result.history and [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["step"] == trainer.total_steps
    assert lines[-1]["validation"].keys() == {f"{m}@5" for m in METRICS}
    for file in (run.last_path, run.best_path, run.ids_path):
        assert file.stat().st_size > 0
    assert run.curve_path.read_bytes().startswith(b"\x89PNG")
    assert [c.step for c in calls] == list(range(1, trainer.total_steps + 1))
    assert sorted({c.epoch for c in calls}) == [1, 2, 3]
    assert calls[-1].eta_seconds == 0.0 and all(c.targets_per_second > 0 for c in calls)
    assert calls[-1].loss == lines[-1]["loss"]
    json.dumps(result.history)


def test_without_validation_the_last_epoch_is_the_best(split: Split, tmp_path: Path) -> None:
    _, result = train(split, TrainingOptions(epochs=2, validation_metric=None), tmp_path / "x")
    assert (result.best_epoch, result.best_value, result.metric) == (2, None, None)
    assert RunFolder.existing(tmp_path / "x").best_path.exists()


def test_a_loss_that_is_not_finite_stops_training(split: Split, tmp_path: Path) -> None:
    class Diverging(Tiny):
        def loss(self, batch: JaggedBatch) -> Tensor:
            loss = super().loss(batch)
            return loss * float("nan") if int(self.rng[1]) > 3 else loss

    model = Diverging({}, {"n_users": split.interactions.n_users, "n_items": split.interactions.n_items})
    trainer = Trainer(model, split, TrainingOptions(epochs=3, checkpoint_every_seconds=0), tmp_path / "x")
    with pytest.raises(TrainingError, match=r"loss is nan at step 5 \(epoch 1\), learning rate 0\.01.*clip .*before"):
        trainer.fit()
    Trainer(model, split, TrainingOptions(epochs=3, checkpoint_every_seconds=0), tmp_path / "x", resume=True)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_dropout_goes_on_after_a_training(split: Split) -> None:
    """Whoever trains the model further by other means draws new masks."""
    trainer = Trainer(make_model(split), split, TrainingOptions(epochs=1, seed=7))
    result, model = trainer.fit(), trainer.model
    model.train()
    assert model.rng.tolist() == [7, result.steps]
    model._take_rng()
    assert model.rng.tolist() == [7, result.steps + 1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_resume(split: Split, tmp_path: Path, number: signal.Signals) -> None:
    whole, _ = train(split, TrainingOptions(epochs=3))

    def interrupt(progress: Progress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), number)

    options = TrainingOptions(epochs=3, progress_every_seconds=0.0)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    _, result = train(split, options, tmp_path / "x", interrupt)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert (result.stopped, result.steps) == ("interrupted", 5)
    assert "--resume" in result.message and str(tmp_path / "x") in result.message
    again, result = train(split, options, tmp_path / "x", seed=99, resume=True)
    assert result.stopped == "finished" and same_weights(again, whole)
    assert "nothing was saved" in train(split, options, on_steps=interrupt)[1].message


def test_a_signal_during_the_last_validation_is_not_lost(split: Split, tmp_path: Path) -> None:
    """No step follows that would see it: whoever trains several models must still learn of it."""

    class Interrupted(Trainer):
        def validate(self) -> Evaluation:
            if self.state.epoch == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return super().validate()

    whole, expected = train(split, TrainingOptions(epochs=2))
    result = Interrupted(make_model(split), split, TrainingOptions(epochs=2), tmp_path / "x").fit()
    assert (result.stopped, result.epochs, result.steps) == ("interrupted", 2, expected.steps)
    assert "epoch 2" in result.message and "--resume" in result.message
    again, result = train(split, TrainingOptions(epochs=2), tmp_path / "x", seed=9, resume=True)
    assert (result.stopped, result.best_value) == ("finished", expected.best_value) and same_weights(again, whole)


def test_more_patience_goes_on_where_less_gave_up(split: Split, tmp_path: Path) -> None:
    def epochs(patience: int | None, resume: bool) -> int:
        options = TrainingOptions(epochs=6, min_delta=1.0, patience=patience)
        return train(split, options, tmp_path / "x", resume=resume)[1].epochs

    assert [epochs(1, False), epochs(1, True), epochs(3, True), epochs(None, True)] == [2, 2, 4, 6]


def test_a_resumed_loss_is_counted_by_one_process_only(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved in the midst of an epoch are the losses of all; only the first process goes on from them."""
    options = TrainingOptions(epochs=1, max_seconds=1e-9)
    train(split, options, tmp_path / "x")

    class Alone(Ranks):
        """One of two processes, without the other."""

        def gather(self, tensor: Tensor) -> list[Tensor]:
            return [tensor, tensor]

        def wait(self) -> None:
            pass

    monkeypatch.setattr(RunFolder, "open", lambda path, ranks, **options: RunFolder(path, resume=True))
    states = []
    for rank in (0, 1):
        monkeypatch.setattr(Ranks, "join", lambda device, rank=rank: Alone(rank, 2))
        states.append(Trainer(make_model(split), split, options, tmp_path / "x", resume=True).state)
    assert [state.step for state in states] == [1, 1]
    assert states[0].epoch_targets > 0 and states[0].epoch_loss > 0
    assert (states[1].epoch_targets, states[1].epoch_loss) == (0, 0.0)


def test_a_trained_model_recommends_in_raw_ids() -> None:
    histories = {f"u{user}": [f"i{(user + step) % 12}" for step in range(6)] for user in range(20)}
    data = from_sequences(histories)
    model = make_model(leave_one_out(data))
    Trainer(model, leave_one_out(data), TrainingOptions(epochs=1, validation_metric=None)).fit()
    answer = model.recommend([data.history("u3")], k=4)[0]
    assert len(answer.items) == 4 and not set(answer.items) & set(data.history("u3"))
    assert all(item in data.item_ids.values for item in answer.items)


def test_a_user_who_has_seen_everything_is_named_before_training() -> None:
    split = leave_one_out(from_sequences({"all": ["a", "b", "c", "a", "a"], "one": ["a", "b"]}))
    with pytest.raises(DataError, match=r"user 'all' has seen every one of the 3 items.*neg_samples: 0"):
        Trainer(make_model(split), split, TrainingOptions(validation_metric=None))
    for params in ({"negatives": "shared"}, {"neg_samples": 0}):
        Trainer(make_model(split, **params), split, TrainingOptions(epochs=1, validation_metric=None)).fit()


def test_max_seconds_stops_and_can_be_resumed(split: Split, tmp_path: Path) -> None:
    whole, _ = train(split, TrainingOptions(epochs=2))
    _, result = train(split, TrainingOptions(epochs=2, max_seconds=1e-9), tmp_path / "x")
    assert (result.stopped, result.steps, result.epochs) == ("max_seconds", 1, 0)
    again, _ = train(split, TrainingOptions(epochs=2), tmp_path / "x", resume=True)
    assert same_weights(again, whole)


def test_resume_refuses_another_model_data_or_options(split: Split, tmp_path: Path) -> None:
    train(split, TrainingOptions(epochs=1), tmp_path / "x")
    with pytest.raises(CheckpointError, match="--resume"):
        Trainer(make_model(split), split, TrainingOptions(epochs=1), tmp_path / "x")

    def resume(options: TrainingOptions, other: Any = split, **params: Any) -> Trainer:
        return Trainer(make_model(other, **params), other, options, tmp_path / "x", resume=True)

    with pytest.raises(CheckpointError, match="hyperparameters: neg_samples is 2 in the checkpoint and 3 here"):
        resume(TrainingOptions(epochs=1), neg_samples=3)
    with pytest.raises(CheckpointError, match="options: seed is 42 in the checkpoint and 1 here"):
        resume(TrainingOptions(epochs=1, seed=1))
    with pytest.raises(CheckpointError, match="another catalogue: n_users"):
        resume(TrainingOptions(epochs=1), make_split(n_users=41))
    with pytest.raises(CheckpointError, match="data set or split: data_hash"):
        resume(TrainingOptions(epochs=1), make_split(seed=5))
    longer = resume(TrainingOptions(epochs=2)).fit()
    assert (longer.epochs, len(longer.history)) == (2, 2)


def test_disk_full_keeps_the_old_checkpoint(split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TrainingOptions(epochs=3)
    whole, _ = train(split, options)

    def fill(progress: Progress) -> None:
        if progress.epoch == 2:
            monkeypatch.setattr(os, "replace", full)

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"No space left on device.*intact"):
        train(split, options, tmp_path / "x", fill)
    monkeypatch.undo()
    again, _ = train(split, options, tmp_path / "x", resume=True)
    assert same_weights(again, whole)


def test_options_are_checked() -> None:
    wrong: tuple[tuple[str, Any], ...] = (
        ("epochs", 0),
        ("patience", 0),
        ("precision", "fp16"),
        ("schedule", "step"),
        ("clip_norm", 0.0),
        ("max_seconds", -1.0),
        ("seed", True),
    )
    for name, value in wrong:
        with pytest.raises(ConfigError, match=f"{name} is {value!r}, expected"):
            TrainingOptions(**{name: value})
    with pytest.raises(ConfigError, match="unknown metric"):
        TrainingOptions(validation_metric="auc@3")
    with pytest.raises(ConfigError, match="nothing to wait for"):
        TrainingOptions(validation_metric=None, patience=2)
    bare = leave_one_out(make_split().interactions, validation=False)
    with pytest.raises(ConfigError, match="no validation targets"):
        Trainer(make_model(bare), bare, TrainingOptions(patience=2))
    with pytest.raises(ValueError, match="built for"):
        Trainer(make_model(bare), make_split(n_users=12), TrainingOptions())
