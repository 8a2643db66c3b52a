"""Hyperparameters: what each may be, what may be left out, and errors that name the key.

The default of one of WarpRec's keys is the value of the model's class attribute (sasrec.py, gru4rec.py, caser.py);
without one the key is required.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ..errors import ConfigError, did_you_mean, nearest
from ..ops.sampled_loss import LOSSES as SAMPLED_LOSSES

LOSSES = (*SAMPLED_LOSSES, "cross_entropy")


@dataclass(frozen=True)
class Number:
    """A number in [low, high], or [low, high) where ``below`` is set, or (low, high] where ``above`` is set."""

    integer: bool = False
    low: float = 0.0
    high: float = math.inf
    above: bool = False
    below: bool = False
    optional: bool = False

    def __str__(self) -> str:
        kind = "an integer" if self.integer else "a number"
        low = f"{'>' if self.above else '>='} {self.low:g}"
        most = str(int(self.high)) if self.integer and self.high < math.inf else f"{self.high:g}"
        high = "" if self.high == math.inf else f" and {'<' if self.below else '<='} {most}"
        return f"{kind} {low}{high}" + (" or null" if self.optional else "")

    def accept(self, value: Any) -> Any:
        if value is None and self.optional:
            return None
        kind = Integral if self.integer else Real
        if isinstance(value, bool) or not issubclass(type(value), kind):
            raise ValueError
        try:
            number = int(value) if self.integer else float(value)
        except OverflowError:
            raise ValueError from None
        if not (self.low <= number <= self.high) or number == math.inf:
            raise ValueError
        if (self.above and number == self.low) or (self.below and number == self.high):
            raise ValueError
        return number


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]
    optional: bool = False

    def __str__(self) -> str:
        return "one of " + ", ".join(self.words) + (" or null" if self.optional else "")

    def accept(self, value: Any) -> Any:
        if value in self.words or (value is None and self.optional):
            return value
        raise ValueError


@dataclass(frozen=True)
class Flag:
    """true or false."""

    def __str__(self) -> str:
        return "true or false"

    def accept(self, value: Any) -> Any:
        if isinstance(value, bool):
            return value
        raise ValueError


SIZE = Number(integer=True, low=1, high=2**31 - 1)
DEPTH = Number(integer=True, low=1, high=4096)
COUNT = Number(integer=True, high=2**31 - 1)
PROBABILITY = Number(high=1.0, below=True)
RULES: dict[str, Number | Choice | Flag] = {
    **dict.fromkeys(("embedding_size", "hidden_size", "inner_size", "n_heads"), SIZE),
    **dict.fromkeys(("max_seq_len", "batch_size", "epochs"), SIZE),
    **dict.fromkeys(("num_layers", "n_layers"), DEPTH),
    **dict.fromkeys(("n_h", "n_v", "neg_samples"), COUNT),
    **dict.fromkeys(("dropout_prob", "attn_dropout_prob"), PROBABILITY),
    **dict.fromkeys(("reg_weight", "weight_decay", "negative_alpha"), Number()),
    "learning_rate": Number(above=True),
    "loss": Choice(LOSSES, optional=True),
    "negatives": Choice(("per_target", "shared", "shared_unseen")),
    "negative_distribution": Choice(("uniform", "popularity")),
    "gbce_t": Number(high=1.0),
    "window_stride": Number(integer=True, low=1, high=2**31 - 1, optional=True),
    "initializer_range": Number(above=True, optional=True),
    "output_activation": Choice(("relu", "none")),
    "user_vectors": Flag(),
}

# What every model takes beyond WarpRec's keys. The defaults are WarpRec's behaviour.
OBJECTIVE: dict[str, Any] = {
    "loss": None,  # bpr if neg_samples > 0, else cross_entropy
    "negatives": "per_target",
    "negative_distribution": "uniform",
    "negative_alpha": 0.75,
    "gbce_t": 0.75,
    "window_stride": None,  # max_seq_len
    "initializer_range": None,  # Xavier's
    "output_activation": "relu",  # Caser's last layer; "none" for the paper's
    "user_vectors": True,  # Caser's
}
OWNERS = {"output_activation": "Caser", "user_vectors": "Caser"}  # of those that are one model's

# What a configuration has beside the hyperparameters, and where.
ELSEWHERE = {
    "seed": "optimization.properties.seed in a configuration, the argument seed",
    "precision": "optimization.precision in a configuration, TrainingOptions(precision=)",
    "gradient_clip": "optimization.gradient_clip in a configuration, TrainingOptions(clip_norm=)",
    "lr_scheduler": "optimization.lr_scheduler in a configuration, TrainingOptions(schedule=)",
    "eval_every_n": "optimization.eval_every_n in a configuration, TrainingOptions(validate_every=)",
    "device": "optimization.device in a configuration, model.to(device)",
    "patience": "early_stopping.patience in a configuration, TrainingOptions(patience=)",
}


def check_value(model: str, key: str, value: Any) -> Any:
    """``value`` as the model keeps it.

    Raises:
        ConfigError: naming the key, the value and the accepted range.
    """
    rule = RULES.get(key)
    if rule is None:  # a hyperparameter of a subclass, which knows its own range
        return value
    try:
        return rule.accept(value)
    except ValueError:
        raise ConfigError(f"{model}: {key} is {value!r}, expected {rule}") from None


def resolve(model: str, names: Sequence[str], defaults: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Every hyperparameter of a model, checked: those in ``names``, then those of ``OBJECTIVE``.

    Args:
        model: for the errors.
        names: the model's own hyperparameters, in order.
        defaults: what those of ``names`` that may be left out are then.
        params: what the user gave.

    Raises:
        ConfigError: if a key is unknown (names the nearest), missing or out of range, or if keys contradict
            each other.
    """
    known = [*names, *(key for key in OBJECTIVE if key not in names)]
    for key in params:
        if key not in known:
            near = nearest(key, [*known, *ELSEWHERE])
            hint = did_you_mean(key, known)
            if near in ELSEWHERE:
                hint = f"it is {ELSEWHERE[near]} in Python"
            raise ConfigError(f"{model}: unknown hyperparameter {key!r}; {hint}")
    values = {}
    for key in known:
        if key in params:
            values[key] = check_value(model, key, params[key])
        elif key in names and key not in defaults:
            raise ConfigError(f"{model}: hyperparameter {key!r} is missing, expected {RULES.get(key, 'a value')}")
        else:
            values[key] = defaults[key] if key in names else OBJECTIVE[key]
    _check_together(model, values)
    return values


def _check_together(model: str, values: dict[str, Any]) -> None:
    count = values.get("neg_samples", 0)
    if values["loss"] is None:
        values["loss"] = "bpr" if count > 0 else "cross_entropy"
    loss = values["loss"]
    if loss == "cross_entropy" and count > 0:
        raise ConfigError(
            f"{model}: loss 'cross_entropy' scores the whole catalogue and needs neg_samples 0, but neg_samples "
            f"is {count}; set it to 0, or choose a sampled loss ({', '.join(SAMPLED_LOSSES)})"
        )
    if loss != "cross_entropy" and count == 0:
        raise ConfigError(f"{model}: loss {loss!r} needs neg_samples >= 1, but neg_samples is 0")
    if count == 0:
        for key in ("negatives", "negative_distribution"):
            if values[key] != OBJECTIVE[key]:
                raise ConfigError(f"{model}: {key} is {values[key]!r}, but neg_samples is 0: nothing is drawn")
    stride, longest = values["window_stride"], values.get("max_seq_len")
    if stride is not None and longest is not None and stride > longest:
        raise ConfigError(f"{model}: window_stride is {stride}, expected 1 to max_seq_len ({longest}) or null")
