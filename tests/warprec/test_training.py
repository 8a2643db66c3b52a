"""Training on shared windows by Lightning, as WarpRec's Trainer runs it, in one process and in two.

WarpRec starts several processes for a trial on GPUs only, one each; on a CPU its trials are one process. The strategy
below is what it then uses, Lightning's DDP, over gloo, with WarpRec's own callback for the random state.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tests import run_python
from tests.warprec.real import INFO, PARAMS, adapters, pair, sessions

import lightning as L  # isort: skip
from warprec.errors import ConfigurationError  # isort: skip
from warprec.recommenders.callbacks import RandomStateCallback  # isort: skip
from warprec.utils.config.model_configuration import OptimizerConfig  # isort: skip

MODELS = pytest.mark.parametrize("name", list(PARAMS))
EPOCHS = 4


class Modes(L.Callback):
    """In which modes adapter and core have trained."""

    def __init__(self) -> None:
        self.pairs: set[tuple[bool, bool]] = set()

    def on_before_zero_grad(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        self.pairs.add((module.training, module._held.training))


def train(
    name: str,
    ranks: int,
    epochs: int = EPOCHS,
    resume: Path | None = None,
    save: Path | None = None,
    optimizer: str = "Adam",
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, torch.Tensor]:
    """The weights after training ``epochs`` in all, on ``ranks`` processes, with a validation after each epoch."""
    params = {**PARAMS[name], "window_stride": 4, "reg_weight": 0.0, **changes}
    model = getattr(adapters, name)(params, INFO, seed=5)
    model._optimizer_name, model._lr_scheduler_name, model._lr_scheduler_kwargs = optimizer, "StepLR", {"step_size": 2}
    loader = model.get_dataloader(None, sessions(), num_workers=1, persistent_workers=True, seed=5)
    model.validation_step = lambda *_: None
    modes = Modes()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        **(options or {}),
        callbacks=[modes, RandomStateCallback(loader)],
    )
    validation = DataLoader(torch.arange(2))
    trainer.fit(model, loader, validation, ckpt_path=resume, weights_only=False)
    assert modes.pairs == {(True, True)}  # else there is no dropout
    if save is not None:
        trainer.save_checkpoint(save)
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in b)


@MODELS
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(name: str, tmp_path: Path) -> None:
    dropout = {"dropout_prob": 0.3}
    whole = train(name, 1, **dropout)
    half = train(name, 1, epochs=2, save=tmp_path / "half.ckpt", **dropout)
    resumed = train(name, 1, resume=tmp_path / "half.ckpt", **dropout)
    assert same(resumed, whole) and not same(half, whole)


@pytest.fixture
def installed() -> Iterator[None]:
    adapters.install()
    yield
    adapters.uninstall()


@MODELS
@pytest.mark.usefixtures("installed")
def test_row_adam_ends_where_adam_does(name: str, tmp_path: Path) -> None:
    """By its name in WarpRec's registry, with schedule, clipping, accumulated gradients, both loaders; and resumed."""
    cases: list[dict[str, Any]] = [
        {"options": {"gradient_clip_val": 0.05}, "reg_weight": 0.01},
        {"options": {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value"}},
        {"options": {"accumulate_grad_batches": 2}, "window_stride": None},
    ]
    for case in cases:
        dense, rows = (train(name, 1, 2, optimizer=each, batch_size=5, **case) for each in ("Adam", "RowAdam"))
        for key, tensor in dense.items():
            if key.endswith("in_proj_bias"):  # a key's has no gradient but rounding
                rows[key][16:32] = tensor[16:32]
            torch.testing.assert_close(rows[key], tensor, rtol=1e-4, atol=1e-5, msg=f"{name} {key} {case}")
    changes: dict[str, Any] = {"optimizer": "RowAdam", "dropout_prob": 0.3, "batch_size": 5}
    whole = train(name, 1, **changes)
    train(name, 1, epochs=2, save=tmp_path / "half.ckpt", **changes)
    assert same(train(name, 1, resume=tmp_path / "half.ckpt", **changes), whole)


@pytest.mark.usefixtures("installed")
def test_where_row_adam_has_no_rows_it_says_so() -> None:
    assert OptimizerConfig(name="RowAdam", params={"betas": [0.9, 0.99]}).name == "RowAdam"
    with pytest.warns(UserWarning, match="cross_entropy gives every item a gradient"):
        rows = train("SASRec", 1, epochs=1, optimizer="RowAdam", neg_samples=0)
    dense = train("SASRec", 1, epochs=1, neg_samples=0)
    torch.testing.assert_close(rows["item_embedding.weight"], dense["item_embedding.weight"], rtol=1e-4, atol=1e-5)
    _, model = pair("SASRec")
    model._optimizer_name, model._trainer = "RowAdam", SimpleNamespace(world_size=2)
    with pytest.raises(ConfigurationError, match="RowAdam trains on one device"):
        model.configure_optimizers()


@pytest.mark.usefixtures("installed")
def test_a_look_while_rows_wait_changes_nothing() -> None:
    ends, waited = [], 0
    for looks in (False, True):
        _, model = pair("Caser", batch_size=4)
        model._optimizer_name = "RowAdam"
        optimizer = model.configure_optimizers()
        for number, batch in enumerate(model.get_dataloader(None, sessions(), num_workers=1, persistent_workers=True)):
            loss = model.training_step(batch, number)
            optimizer.zero_grad()
            loss.backward()
            model._rows.hand_over()
            optimizer.step()
            if looks:
                copies = [model.state_dict()["item_embedding.weight"] for _ in range(2)]
                assert torch.equal(*copies)
                waited += not torch.equal(copies[0], model.item_embedding.weight)
                model.predict(torch.tensor([0]), torch.tensor([[1, 2]]))
        ends.append({key: value.clone() for key, value in model.state_dict().items()})
    assert same(*ends) and waited
    # Lightning writes the state_dict, then asks the model, and writes the optimizer's state with it.
    assert not torch.equal(model.item_embedding.weight, ends[-1]["item_embedding.weight"])
    moved = copy.deepcopy(model).double()
    assert torch.equal(moved.item_embedding.weight, ends[-1]["item_embedding.weight"].double())
    model.on_save_checkpoint({})
    assert torch.equal(model.item_embedding.weight, ends[-1]["item_embedding.weight"])


def in_two_processes(folder: Path) -> None:
    """What each of the two processes of the test below does; both keep their weights."""
    rank = torch.distributed.get_rank
    weights = {"batches": train("GRU4Rec", 2, epochs=2, batch_size=16)}
    changes: dict[str, Any] = {"dropout_prob": 0.3, "batch_size": 16}
    weights["whole"] = train("GRU4Rec", 2, **changes)
    weights["half"] = train("GRU4Rec", 2, epochs=2, save=folder / "half.ckpt", **changes)
    torch.distributed.barrier()
    weights["resumed"] = train("GRU4Rec", 2, resume=folder / "half.ckpt", **changes)
    torch.save(weights, folder / f"rank{rank()}.pt")


def test_two_processes_divide_the_batches_and_resume(tmp_path: Path) -> None:
    run_python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", __name__, tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert first.keys() == second.keys() and all(same(first[run], second[run]) for run in first)
    assert same(first["resumed"], first["whole"]) and not same(first["half"], first["whole"])
    # Two processes with 16 targets each take the steps of one with 32, and not of one with 16.
    alone, other = (train("GRU4Rec", 1, epochs=2, batch_size=size) for size in (32, 16))
    for key, value in alone.items():
        assert torch.allclose(first["batches"][key].float(), value.float(), atol=2e-5), key
    assert any(not torch.allclose(other[key].float(), value.float(), atol=2e-4) for key, value in alone.items())


if __name__ == "__main__":
    in_two_processes(Path(sys.argv[1]))
