"""PyTorch's optimizers and learning-rate schedulers that WarpRec offers, by its names and parameters."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastseq.errors import ConfigError, did_you_mean

OPTIMIZERS = ("Adam", "AdamW", "SGD", "RMSprop", "Adagrad")
SCHEDULERS = (
    "StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR", "PolynomialLR", "CosineAnnealingLR",
    "ReduceLROnPlateau", "CosineAnnealingWarmRestarts",
)  # fmt: skip
# What hyperparameters and the loop decide, and how PyTorch computes.
_NOT_TAKEN = {"capturable", "decoupled_weight_decay", "differentiable", "foreach", "fused", "last_epoch", "lr"}
_NOT_TAKEN |= {"maximize", "mode", "optimizer", "params", "self", "verbose", "weight_decay"}


def spelt(name: str, known: Iterable[str]) -> str:
    """The known name, whatever its case.

    Raises:
        ValueError: naming what is known.
    """
    names = {each.lower(): each for each in known}
    if name.lower() not in names:
        raise ValueError(f"expected one of {', '.join(names.values())}")
    return names[name.lower()]


def make_optimizer(
    name: str, groups: Iterable[Tensor] | list[dict[str, Any]], lr: float, params: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """One of ``OPTIMIZERS`` over parameter groups, with the learning rate ``lr``; weight decay is the groups'.

    Raises:
        ConfigError: naming the parameter that it does not take, or what is wrong with it.
    """
    fused = {"fused": True} if name in ("Adam", "AdamW") else {}
    return _make(getattr(torch.optim, name), params, groups, lr=lr, **fused)


def make_scheduler(
    name: str, optimizer: torch.optim.Optimizer, params: Mapping[str, Any]
) -> torch.optim.lr_scheduler.LRScheduler:
    """One of ``SCHEDULERS``, to be stepped after each epoch, ReduceLROnPlateau with the epoch's training loss.

    Raises:
        ConfigError: naming the parameter that it does not take, or what is wrong with it.
    """
    return _make(getattr(torch.optim.lr_scheduler, name), params, optimizer)


def check(
    optimizer: str, optimizer_params: Mapping[str, Any], schedule: str, schedule_params: Mapping[str, Any]
) -> None:
    """Builds both for a parameter of their own.

    Raises:
        ConfigError: as above.
    """
    made = make_optimizer(optimizer, [torch.zeros(1, requires_grad=True)], 0.1, optimizer_params)
    if schedule in SCHEDULERS:
        make_scheduler(schedule, made, schedule_params)


def state_of(scheduler: torch.optim.lr_scheduler.LRScheduler | None) -> dict[str, Any]:
    """Where it stands, ready for JSON: what its parameters say is left out."""
    state = {} if scheduler is None else scheduler.state_dict()
    return {key: value for key, value in state.items() if isinstance(value, int | float | list)}


def _make(kind: Any, params: Mapping[str, Any], *arguments: Any, **more: Any) -> Any:
    name, known = kind.__name__, sorted(inspect.signature(kind).parameters.keys() - _NOT_TAKEN)
    if unknown := [key for key in params if key not in known]:
        raise ConfigError(f"{name} takes no parameter {unknown[0]!r}: {did_you_mean(unknown[0], known)}")
    try:
        return kind(*arguments, **params, **more)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{name} with the parameters {dict(params)}: {error}; it takes {', '.join(known)}") from error
