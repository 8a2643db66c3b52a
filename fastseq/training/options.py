"""What a training run is told besides the model's hyperparameters, and the learning-rate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fastseq.data.split import History
from fastseq.errors import ConfigError

from . import optimizers
from .metrics import LIST_METRICS, MaskSeen, RankingProtocol, parse_metric

Precision = Literal["fp32", "tf32", "bf16"]
Execution = Literal["auto", "eager", "graph"]
Updates = Literal["auto", "dense", "rows"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SCHEDULES = ("constant", "linear", "cosine")  # by step; those of optimizers.SCHEDULERS are by epoch


@dataclass(frozen=True)
class TrainingOptions:
    """Batch size, learning rate, weight decay and window stride are not here: they are hyperparameters of the model.

    Attributes:
        epochs: None: the model's hyperparameter ``epochs``.
        seed: of batch order, negatives and dropout.
        precision: "fp32"; "tf32": the same, but float32 products on a GPU may use TF32 in training steps (on the CPU it
            is fp32); "bf16": forward and loss under bfloat16 autocast, weights and optimizer in float32.
        execution: "eager": a step's operations are launched one by one; "graph": on a GPU they are recorded once as a
            CUDA graph and replayed; "auto": "graph" where that is served, else "eager".
        clip_norm: gradients are scaled down to this total norm; None: never.
        optimizer, optimizer_params: "Adam", "AdamW", "SGD", "RMSprop" or "Adagrad", with PyTorch's parameters.
        updates: "rows": Adam moves the rows of the item and user tables that a step touches, and catches the others up
            when they are read, so that a step costs what it touches (``fastseq.optim.RowAdam``); "dense": it walks the
            whole tables; "auto": "rows" where that is served and faster, else "dense".
        schedule: learning rate after warm-up: "constant", or falling to 0 at the last step, "linear" or "cosine". Or
            one of PyTorch's schedulers that WarpRec offers, such as "StepLR", which is stepped after each epoch.
        schedule_params: parameters of PyTorch's scheduler.
        warmup_steps: steps over which the learning rate first rises in a line from 0; not with PyTorch's schedulers.
        validation_metric: ``name@k`` in any case, such as ``"nDCG@10"``; what "best" means. None: no validation, and
            the last epoch is the best.
        validate_every: epochs between validations. The last epoch is always validated.
        patience: stop after so many validations in a row without improvement; None: never.
        min_delta: by how much the metric must rise to count as an improvement.
        grace_period: epochs whose validations do not count towards ``patience``.
        validation_users: validate on so many users, a random sample by ``evaluation_seed`` that is the same in every
            epoch; None, or more than there are: on all.
        evaluation_batch_size: users ranked at a time.
        protocol, n_negatives, evaluation_seed, mask_seen, history: how validation ranks; ``evaluate`` explains each.
        per_target: one sequence per target, as WarpRec's batches, instead of windows that share prefixes.
        checkpoint_every_seconds: time between checkpoints inside an epoch; 0: every step; None: only after epochs.
        max_seconds: stop after so many seconds of training steps, by the host's clock; the steps that a GPU has left to
            do then are waited for. None: never.
        progress_every_seconds: time between calls of a callback's ``on_steps``; 0: after every step.

    Raises:
        ConfigError: naming the option, its value and what is accepted.
    """

    epochs: int | None = None
    seed: int = 42
    precision: Precision = "fp32"
    execution: Execution = "auto"
    clip_norm: float | None = None
    optimizer: str = "Adam"
    optimizer_params: dict[str, Any] = field(default_factory=dict)
    updates: Updates = "auto"
    schedule: str = "constant"
    schedule_params: dict[str, Any] = field(default_factory=dict)
    warmup_steps: int = 0
    validation_metric: str | None = "nDCG@10"
    validate_every: int = 1
    patience: int | None = None
    min_delta: float = 0.0
    grace_period: int = 0
    validation_users: int | None = None
    evaluation_batch_size: int = 256
    protocol: RankingProtocol = "full"
    n_negatives: int = 99
    evaluation_seed: int = 42
    mask_seen: MaskSeen = "pair"
    history: History = "all"
    per_target: bool = False
    checkpoint_every_seconds: float | None = 300.0
    max_seconds: float | None = None
    progress_every_seconds: float = 0.2

    def __post_init__(self) -> None:
        def require(name: str, ok: bool, expected: str) -> None:
            if not ok:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected {expected}")

        require("seed", not isinstance(self.seed, int) or self.seed < 2**63, "an integer below 2**63")
        least = dict.fromkeys(("epochs", "validate_every", "validation_users", "patience"), 1)
        least |= dict.fromkeys(("evaluation_batch_size", "n_negatives"), 1)
        least |= dict.fromkeys(("seed", "warmup_steps", "grace_period", "evaluation_seed"), 0)
        for name, low in least.items():
            value = getattr(self, name)
            optional = name in ("epochs", "patience", "validation_users")
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= low
            require(name, whole or (optional and value is None), f"an integer >= {low}")
        require("precision", self.precision in PRECISIONS, " or ".join(map(repr, PRECISIONS)))
        choices = {
            "execution": Execution,
            "updates": Updates,
            "protocol": RankingProtocol,
            "mask_seen": MaskSeen,
            "history": History,
        }
        for name, kind in choices.items():
            require(name, getattr(self, name) in get_args(kind), " or ".join(map(repr, get_args(kind))))
        schedules = (*SCHEDULES, *optimizers.SCHEDULERS)
        require("schedule", self.schedule in schedules, f"one of {', '.join(schedules)}")
        require("optimizer", self.optimizer in optimizers.OPTIMIZERS, f"one of {', '.join(optimizers.OPTIMIZERS)}")
        by_step = self.schedule in SCHEDULES
        require("warmup_steps", by_step or self.warmup_steps == 0, f"0 with the schedule {self.schedule}")
        require("schedule_params", not (by_step and self.schedule_params), f"none with the schedule {self.schedule!r}")
        optimizers.check(self.optimizer, self.optimizer_params, self.schedule, self.schedule_params)
        for name in ("clip_norm", "max_seconds", "checkpoint_every_seconds", "min_delta"):
            value = getattr(self, name)
            positive = name in ("clip_norm", "max_seconds")
            number = (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and (value > 0 if positive else value >= 0)
            )
            optional = name != "min_delta"
            require(name, number or (optional and value is None), "a number > 0" if positive else "a number >= 0")
        if self.validation_metric is not None:
            name, _ = parse_metric(self.validation_metric)
            full = self.protocol == "full" or name not in LIST_METRICS
            require("validation_metric", full, "a mean over users: a sampled ranking has no lists of the catalogue")
        elif self.patience is not None:
            raise ConfigError(f"patience is {self.patience}, but validation_metric is None: nothing to wait for")


def learning_rate_factor(schedule: str, step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """What the learning rate of step ``step`` (from 0) is multiplied by.

    Warm-up rises as 1/w, 2/w, … 1 over its w steps. "linear" and "cosine" then fall from 1 and would reach 0 at
    step ``total_steps``, the first that is not taken.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))
