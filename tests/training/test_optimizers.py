"""WarpRec's optimizers and schedulers: PyTorch's own, stepped after each epoch, and exact when a run is resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastseq.cli.configuration import parse_config
from fastseq.errors import ConfigError
from fastseq.training.callbacks import Progress
from fastseq.training.loop import Trainer
from fastseq.training.optimizers import OPTIMIZERS, SCHEDULERS
from fastseq.training.options import TrainingOptions
from tests.models.small import small_params

from .tiny import Tiny, make_model, make_split, same_weights, train

PARAMETERS: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 2, "gamma": 0.3},
    "MultiStepLR": {"milestones": [1, 4], "gamma": 0.5},
    "ConstantLR": {"factor": 0.2, "total_iters": 3},
    "LinearLR": {"start_factor": 0.1, "total_iters": 4},
    "ExponentialLR": {"gamma": 0.7},
    "PolynomialLR": {"total_iters": 4, "power": 2},
    "CosineAnnealingLR": {"T_max": 3, "eta_min": 0.001},
    "ReduceLROnPlateau": {"factor": 0.4, "patience": 0, "threshold": 0.5},
    "CosineAnnealingWarmRestarts": {"T_0": 2, "T_mult": 2},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_rates_are_those_of_pytorch_and_survive_a_resume(name: str, tmp_path: Path) -> None:
    split = make_split()
    options = TrainingOptions(epochs=6, schedule=name, schedule_params=PARAMETERS[name], validation_metric=None)
    whole, result = train(split, options)

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], whole.learning_rate)
    scheduler: Any = getattr(torch.optim.lr_scheduler, name)(optimizer, **PARAMETERS[name])
    want = []
    for record in result.history:
        want.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*([record["loss"]] if name == "ReduceLROnPlateau" else []))
    assert [record["learning_rate"] for record in result.history] == want and len(set(want)) > 1

    def stop(progress: Progress) -> None:
        if progress.epoch == 4:
            raise KeyboardInterrupt

    # Broken off inside the fourth epoch, from which the last checkpoint is whatever was written before.
    often = TrainingOptions(
        epochs=6, schedule=name, schedule_params=PARAMETERS[name], validation_metric=None, checkpoint_every_seconds=0,
        progress_every_seconds=0,
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        train(split, often, tmp_path / "run", stop)
    resumed, again = train(split, often, tmp_path / "run", resume=True)
    assert same_weights(resumed, whole)
    assert [record["learning_rate"] for record in again.history] == want


@pytest.mark.parametrize(
    ("name", "params"), [("AdamW", {"betas": [0.8, 0.9], "eps": 1e-6}), *((name, {}) for name in OPTIMIZERS)]
)
def test_weights_are_those_of_pytorchs_optimizer(name: str, params: dict[str, Any], tmp_path: Path) -> None:
    """By a configuration: a loop written out with torch.optim, and the same again when it is broken off and resumed."""
    optimization = {"optimizer": {"name": name.lower(), "params": {**params, "weight_decay": 0.5}}}
    config = parse_config({"models": {"GRU4Rec": small_params("GRU4Rec", optimization=optimization)}})
    given = config.models[0].optimization.optimizer
    assert config.unused == ["models.GRU4Rec.optimization.optimizer.params.weight_decay"]
    split = make_split()
    options = TrainingOptions(
        epochs=2, optimizer=given.name, optimizer_params=given.params, validation_metric=None,
        checkpoint_every_seconds=0, progress_every_seconds=0,
    )  # fmt: skip
    trainer = Trainer(make_model(split, weight_decay=0.1), split, options)
    model = make_model(split, weight_decay=0.1)
    optimizer = getattr(torch.optim, name)(model.parameter_groups(), lr=model.learning_rate, **params)
    model.train()
    step = 0
    for epoch in range(2):
        for batch in trainer.loader.batches(epoch):
            model.set_rng(options.seed, step)
            optimizer.zero_grad()
            model.loss(batch).backward()
            optimizer.step()
            step += 1
    trainer.fit()
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[key], tensor, rtol=1e-5, atol=1e-7)

    def stop(progress: Progress) -> None:
        if progress.step == step // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(split, options, tmp_path / "run", stop, weight_decay=0.1)
    resumed, _ = train(split, options, tmp_path / "run", resume=True, weight_decay=0.1)
    assert same_weights(resumed, trainer.model)


def test_a_checkpoint_of_two_groups_goes_on_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before groups were one without weight decay, schedulers kept two rates."""
    split, one_group = make_split(), Tiny.parameter_groups

    def two_groups(model: Tiny) -> list[dict[str, Any]]:
        (group,) = one_group(model)
        return [{**group, "params": group["params"][:1]}, {**group, "params": group["params"][1:]}]

    for schedule, params in (("CosineAnnealingWarmRestarts", {"T_0": 2}), ("ReduceLROnPlateau", {"patience": 0})):
        options = TrainingOptions(epochs=2, schedule=schedule, schedule_params=params)
        longer = replace(options, epochs=4)
        with monkeypatch.context() as patch:
            patch.setattr(Tiny, "parameter_groups", two_groups)
            train(split, options, tmp_path / schedule)
        resumed, _ = train(split, longer, tmp_path / schedule, resume=True)
        assert same_weights(resumed, train(split, longer)[0])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"lr_scheduler": {"name": "StepLR", "params": {}}}, "StepLR with.*step_size"),
        ({"lr_scheduler": {"name": "StepLR", "params": {"stepsize": 3}}}, "no parameter 'stepsize'.*'step_size'"),
        ({"lr_scheduler": {"name": "ReduceLROnPlateau", "params": {"mode": "max"}}}, "no parameter 'mode'"),
        ({"lr_scheduler": {"name": "OneCycleLR"}}, "lr_scheduler.name.*expected one of constant"),
        ({"lr_scheduler": {"name": "linear", "params": {"total_iters": 3}}}, "expected 'warmup_steps'"),
        ({"optimizer": {"name": "AdamW", "params": {"lr": 3}}}, "AdamW takes no parameter 'lr'"),
        ({"optimizer": {"name": "SGD", "params": {"momentum": -1}}}, "SGD with.*momentum"),
        ({"optimizer": {"name": "LBFGS"}}, "optimizer.name.*expected one of Adam"),
    ],
)
def test_what_pytorch_does_not_take_is_refused_by_name(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"models": {"GRU4Rec": small_params("GRU4Rec", optimization=section)}})
