"""What only shows on a device that the host runs ahead of: its time, late losses, full memory, idle steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq import devices
from fastseq.data.batch import JaggedBatch
from fastseq.errors import TrainingError
from fastseq.training import Trainer, TrainingOptions, evaluate, loop
from fastseq.training.distributed import Ranks
from fastseq.training.steps import EagerSteps

from .tiny import Tiny, make_model, make_split, same_weights, train

PLAIN: dict[str, Any] = {"validation_metric": None, "progress_every_seconds": 1e9}
GPU = torch.device("cuda:0")


class Failing(Tiny):
    """Loses something in its fourth step."""

    steps = 0

    def loss(self, batch: JaggedBatch) -> Tensor:
        self.steps += 1
        return super().loss(batch) * self.factor() if self.steps == 4 else super().loss(batch)

    def factor(self) -> float:
        return float("nan")


def make_failing(kind: type[Tiny] = Failing) -> Tiny:
    data = make_split().interactions
    return kind({}, {"n_users": data.n_users, "n_items": data.n_items}, seed=1)


@pytest.mark.parametrize("checkpoint_every", [None, 0.0])
def test_the_wait_for_the_device_is_time_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_every: float | None
) -> None:
    now, stack = [0.0], torch.stack

    def waited(tensors: list[Tensor]) -> Tensor:
        now[0] += 5.0 * len(tensors)  # what each step takes there
        return stack(tensors)

    split = make_split()
    trainer = Trainer(
        make_model(split),
        split,
        TrainingOptions(epochs=2, checkpoint_every_seconds=checkpoint_every, **PLAIN),
        tmp_path,
    )
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch, "stack", waited)
    result = trainer.fit()
    assert result.seconds == 5.0 * result.steps and result.history[0]["seconds"] == 2.5 * result.steps


def test_a_loss_seen_late_names_its_step(tmp_path: Path) -> None:
    split, options = make_split(), TrainingOptions(epochs=1, **PLAIN)
    steps = len(Trainer(make_failing(), split, options).loader)
    with pytest.raises(TrainingError, match=rf"loss is nan at step 4 \(epoch 1, seen after step {steps}\), learning"):
        Trainer(make_failing(), split, options, tmp_path).fit()


def test_full_memory_is_named_and_what_was_saved_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Failing):
        def factor(self) -> float:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")

    split, options = make_split(), TrainingOptions(epochs=1, checkpoint_every_seconds=0.0, **PLAIN)
    whole, _ = train(split, options)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 << 28, 139 << 30))
    monkeypatch.setattr(devices, "device_name", lambda device: "NVIDIA H200")
    with pytest.raises(
        devices.DeviceMemoryError,
        match=r"out of GPU memory while training at a batch_size of 64 targets: 0.8 of 139.0 GiB of NVIDIA H200 were "
        rf"free. Lower batch_size or max_seq_len, or .*CPU. The checkpoints in {tmp_path} are from before.$",
    ):
        Trainer(make_failing(Full), split, options, tmp_path).fit()
    model = make_failing(Full)
    model.steps = 4  # past the one that fails
    resumed = Trainer(model, split, options, tmp_path, resume=True)
    assert resumed.state.step == 3
    resumed.fit()
    assert same_weights(resumed.model, whole)


def test_full_memory_in_an_evaluation_and_a_recommendation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")

    split = make_split()
    model = make_model(split)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 139 << 30))
    model.encode = full  # type: ignore[method-assign]
    with pytest.raises(devices.DeviceMemoryError, match=r"evaluating 256 users .* Lower evaluation.batch_size"):
        evaluate(model, split)
    with pytest.raises(devices.DeviceMemoryError, match=r"recommending for 2 histories: .* Pass fewer histories"):
        model.recommend([[1], [2]])
    trainer = Trainer(make_model(split), split, TrainingOptions(epochs=1, evaluation_batch_size=9))
    monkeypatch.setattr(trainer.model, "encode_last", full)
    with pytest.raises(devices.DeviceMemoryError, match="while evaluating 9 users at a time"):
        trainer.fit()


def test_a_large_gpu_with_small_steps_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_split()
    trainer = Trainer(make_model(split), split)
    trainer._say_if_small()  # a CPU
    monkeypatch.setattr(loop, "device_name", lambda device: "NVIDIA H200")
    trainer.device = GPU
    chip = type("chip", (), {"multi_processor_count": 132})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: chip)
    with pytest.warns(UserWarning, match=r"64 targets .*NVIDIA H200 idle.*batch_size and learning_rate together"):
        trainer._say_if_small()
    trainer.model.batch_size = 16_384
    trainer._say_if_small()
    chip.multi_processor_count, trainer.model.batch_size = 46, 64
    trainer._say_if_small()


def test_ranks_read_the_answer_to_a_question_one_step_later(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    read: list[int] = []

    class Two(Ranks):
        def summing(self, tensor: Tensor) -> Any:
            number = len(asked)
            asked.append(tensor.tolist())
            return lambda: (read.append(number), torch.tensor([0, int(number == 2)]))[1]

    split = make_split()
    trainer = Trainer(make_model(split), split)
    trainer.ranks, trainer._before = Two(0, 2), (0, 0.0)
    request: Any = type("request", (), {"signal": None})
    reasons = [trainer._stop_reason(request) for _ in range(4)]
    assert reasons == [None, None, None, "interrupted"] and asked == [[0, 0]] * 4
    assert read == [0, 0, 1, 2, 3], "the first at once, each other one a step late, the last so that none is left open"
    assert trainer._stop_reason(request, at_once=True) is None and read[-1] == 4


def test_a_training_of_ranks_that_was_stopped_goes_on() -> None:
    class Two(Ranks):
        asked = 0

        def sum(self, tensor: Tensor) -> Tensor:
            return tensor

        def summing(self, tensor: Tensor) -> Any:
            self.__class__.asked += 1
            other = int(self.asked in (3, 4))  # another rank, which a signal has reached
            return lambda: tensor + torch.tensor([0, other])

    split = make_split()
    trainer = Trainer(make_model(split), split, TrainingOptions(epochs=2, **PLAIN))
    assert isinstance(trainer.steps, EagerSteps)
    trainer.ranks = Two(0, 2)
    assert [trainer.fit().stopped for _ in range(2)] == ["interrupted", "finished"]
