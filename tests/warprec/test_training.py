"""Training on shared windows by Lightning, as WarpRec's Trainer runs it, in one process and in two.

WarpRec starts several processes for a trial on GPUs only, one each; on a CPU its trials are one process. The strategy
below is what it then uses, Lightning's DDP, over gloo, with WarpRec's own callback for the random state.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tests import run_python
from tests.warprec.real import INFO, PARAMS, adapters, sessions

import lightning as L  # isort: skip
from warprec.recommenders.callbacks import RandomStateCallback  # isort: skip

MODELS = pytest.mark.parametrize("name", list(PARAMS))
EPOCHS = 4


class Modes(L.Callback):
    """In which modes adapter and core have trained."""

    def __init__(self) -> None:
        self.pairs: set[tuple[bool, bool]] = set()

    def on_before_zero_grad(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        self.pairs.add((module.training, module._held.training))


def train(
    name: str, ranks: int, epochs: int = EPOCHS, resume: Path | None = None, save: Path | None = None, **changes: Any
) -> dict[str, torch.Tensor]:
    """The weights after training ``epochs`` in all, on ``ranks`` processes, with a validation after each epoch."""
    params = {**PARAMS[name], "window_stride": 4, "reg_weight": 0.0, **changes}
    model = getattr(adapters, name)(params, INFO, seed=5)
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
