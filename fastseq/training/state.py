"""What ``last`` and ``best`` hold, and how training goes on from ``last`` as if it had never stopped."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastseq.data.split import Split
from fastseq.errors import CheckpointError
from fastseq.models.base import SequentialRecommender
from fastseq.ops.philox import STREAM
from fastseq.optim import RowAdam

from . import checkpoint, optimizers, parts
from .options import TrainingOptions
from .run import catalogue_digest

StopReason = Literal["finished", "patience", "interrupted", "max_seconds"]
# Options and hyperparameters that resuming may change: they say how far and how watched, not what a step does.
_FREE_OPTIONS = {
    "epochs",
    "patience",
    "min_delta",
    "grace_period",
    "evaluation_batch_size",
    "execution",
    "checkpoint_every_seconds",
    "max_seconds",
    "progress_every_seconds",
}
_BY_GROUP = {"base_lrs", "_last_lr", "min_lrs"}  # what a scheduler keeps for each group of parameters


@dataclass
class TrainState:
    """Where training is.

    Attributes:
        epoch: epochs done; batch: batches done in the one after them.
        step: optimizer steps taken; targets: seen in them, over all ranks.
        seconds: of training steps, by the host's clock. A GPU may be some steps behind: the wait for it is added where
            losses are read, at each report, checkpoint and end of an epoch.
        epoch_loss: loss summed over the targets of this epoch, epoch_targets: those targets (of this rank).
        first_loss, last_loss: of the first and the last step (of this rank).
        best_epoch, best_value: of the validation metric; bad_validations: in a row without improvement.
        stopped: why training is over, or None while it is not.
        metrics_bytes: length of ``metrics.jsonl``.
        execution: how the last steps were taken; None: it is not known.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    targets: int = 0
    seconds: float = 0.0
    epoch_loss: float = 0.0
    epoch_targets: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    best_epoch: int | None = None
    best_value: float | None = None
    bad_validations: int = 0
    stopped: StopReason | None = None
    metrics_bytes: int = 0
    execution: Literal["eager", "graph"] | None = None


def describe(model: SequentialRecommender, split: Split) -> dict[str, Any]:
    """The metadata from which ``load`` builds the model again and that says what it was trained on."""
    data = split.interactions
    return {
        "model": type(model).__name__,
        "params": model.get_params(),
        "info": {"n_users": model.n_users, "n_items": model.n_items},
        "catalogue": catalogue_digest(data.user_ids, data.item_ids),
        "split": split.describe(),
    }


def save_best(path: Path, model: SequentialRecommender, split: Split, reached: Mapping[str, Any]) -> None:
    """Writes the weights; ``reached`` says at which epoch and with which metric."""
    metadata = {"kind": "best", **describe(model, split), **reached}
    parts.save(path, _weights(model), metadata, rows_of(model), model.shards)


def load_best(path: Path, model: SequentialRecommender, epoch: int | None) -> None:
    """Puts the weights that ``save_best`` wrote after ``epoch`` back into ``model``."""
    tensors, metadata = parts.load(path, rows_of(model), model.shards, mapped=True)
    checkpoint.check_same(path, "training run", metadata, {"kind": "best", "epoch": epoch})
    _load_weights(path, model, tensors)


def save_last(
    path: Path,
    model: SequentialRecommender,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    split: Split,
    options: TrainingOptions,
    state: TrainState,
    world_size: int,
) -> None:
    """Writes everything that ``load_last`` needs to go on exactly here; ``world_size`` processes train."""
    # Beside what rows wait for: going on, they are made up for as before.
    tensors = {f"model.{name}": tensor for name, tensor in model.raw_state().items()}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if value is not None:  # SGD without momentum
                tensors[f"optimizer.{index}.{name}"] = value
    tensors["rng.torch"] = torch.get_rng_state()
    metadata = {"kind": "last", "stream": STREAM, **describe(model, split)}
    metadata |= {"options": asdict(options), "state": asdict(state)}
    metadata["scheduler"] = optimizers.state_of(scheduler)
    metadata["waiting_rows"] = model.waiting_rows is not None
    metadata["updates"] = "rows" if isinstance(optimizer, RowAdam) else "dense"
    metadata["learning_rates"] = [group["lr"] for group in optimizer.param_groups]
    metadata["world_size"] = world_size
    parts.save(path, tensors, metadata, rows_of(model), model.shards)


def load_last(
    path: Path,
    model: SequentialRecommender,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    split: Split,
    options: TrainingOptions,
    world_size: int,
) -> TrainState:
    """Puts ``model``, ``optimizer`` and ``scheduler`` where ``save_last`` left them. Other processes than wrote it may
    go on, which is said: their dropout masks and sums are not those of before.

    Raises:
        CheckpointError: if the file is damaged, was saved for another model, data or options, naming what differs, or
            with another random stream.
    """
    tensors, metadata = parts.load(path, rows_of(model), model.shards)
    if metadata.get("kind") != "last":
        raise CheckpointError(f"{path}: not a checkpoint to resume from (it is {metadata.get('kind')!r}, not 'last')")
    if (stream := metadata.get("stream", 1)) != STREAM:  # before 2 it was not written
        raise CheckpointError(
            f"{path}: trained with random stream {stream}, and this fastseq-rec draws stream {STREAM}: other dropout "
            "masks; train anew, or resume with the version that saved it. It can still be evaluated and recommend"
        )
    here = json.loads(json.dumps(describe(model, split)))
    checkpoint.check_same(path, "model", metadata, {"model": here["model"]})
    checkpoint.check_same(path, "catalogue", metadata["catalogue"], here["catalogue"])
    checkpoint.check_same(path, "data set or split", metadata["split"], here["split"])
    keys = (here["params"] | metadata["params"]).keys() - {"epochs"}
    saved, current = ({key: side["params"].get(key) for key in keys} for side in (metadata, here))
    checkpoint.check_same(path, "set of hyperparameters", saved, current)
    written = json.loads(json.dumps(asdict(options)))
    fixed = {key: value for key, value in written.items() if key not in _FREE_OPTIONS}
    checkpoint.check_same(path, "set of training options", metadata["options"], fixed)
    updates = "rows" if isinstance(optimizer, RowAdam) else "dense"
    checkpoint.check_same(path, "way of updates", metadata, {"updates": updates})
    if (before := metadata.get("world_size", world_size)) != world_size:
        warnings.warn(
            f"{path}: {before} processes trained until here, now {world_size} go on: from here on the weights are not "
            "bit for bit those of a run that was never stopped",
            stacklevel=4,
        )
    _load_weights(path, model, tensors)
    _load_optimizer(optimizer, tensors)
    if metadata.get("waiting_rows") and isinstance(optimizer, RowAdam):
        model.waiting_rows = optimizer
    if scheduler is not None:
        # Without weight decay an older checkpoint has two groups, of equal rates.
        rates = metadata["learning_rates"][: len(optimizer.param_groups)]
        by_group = {key: metadata["scheduler"][key][: len(rates)] for key in _BY_GROUP & metadata["scheduler"].keys()}
        scheduler.load_state_dict(metadata["scheduler"] | by_group)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    torch.set_rng_state(tensors["rng.torch"])
    known = {field.name for field in fields(TrainState)}
    return TrainState(**{key: value for key, value in metadata["state"].items() if key in known})


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            entries.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def catch_up(model: SequentialRecommender, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Brings the tables of a model that has the weights of a ``last`` checkpoint up to date, if rows of them wait."""
    if metadata.get("waiting_rows"):
        optimizer = RowAdam(model.parameter_groups(), model.learning_rate, **metadata["options"]["optimizer_params"])
        _load_optimizer(optimizer, tensors)
        optimizer.flush()


def rows_of(model: SequentialRecommender) -> dict[str, int]:
    """The tensors of a checkpoint that have a row an item or user, and how many rows the whole has."""
    rows: dict[str, int] = {}
    parameters = [each for group in model.parameter_groups() for each in group["params"]]
    for name, table in model.tables().items():
        numbers = [number for number, parameter in enumerate(parameters) if parameter is table]
        keys = [f"optimizer.{number}.{key}" for number in numbers for key in ("exp_avg", "exp_avg_sq", "last_step")]
        count = model.n_items + 1 if name == "item" else model.n_users
        rows |= dict.fromkeys([f"model.{name}_embedding.weight", *keys], count)
    return rows


def _weights(model: SequentialRecommender) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def _load_weights(path: Path, model: SequentialRecommender, tensors: Mapping[str, Tensor]) -> None:
    weights = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit this {type(model).__name__}: {error}") from error
