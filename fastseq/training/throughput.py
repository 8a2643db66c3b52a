"""Speed of training and of recommending, measured through the same code that users run."""

from __future__ import annotations

import itertools
import platform
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._process import peak_rss_mb, reset_peak_rss
from .._version import __version__
from ..data.interactions import Interactions
from ..data.readers import read_interactions
from ..data.split import Split
from ..data.synthetic import make_demo
from ..devices import device_name, find_device
from ..errors import ConfigError
from ..models import MODELS, SequentialRecommender, Shards
from .distributed import Ranks
from .loop import Trainer
from .options import TrainingOptions
from .plan import LOOKED_AT

# The configurations of the original request; what they leave out takes the models' defaults.
REFERENCE_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "SASRec": {
        "embedding_size": 128, "n_layers": 2, "n_heads": 4, "inner_size": 512, "dropout_prob": 0.3,
        "attn_dropout_prob": 0.3, "learning_rate": 0.001, "weight_decay": 0.0, "epochs": 1, "neg_samples": 1,
    },
    "GRU4Rec": {
        "embedding_size": 128, "hidden_size": 128, "num_layers": 1, "dropout_prob": 0.2, "weight_decay": 0.0001,
        "epochs": 20, "learning_rate": 0.001, "neg_samples": 2,
    },
    "Caser": {
        "embedding_size": 64, "n_h": 8, "n_v": 4, "dropout_prob": 0.5, "weight_decay": 0.0, "epochs": 3,
        "learning_rate": 0.001, "neg_samples": 1,
    },
}  # fmt: skip


def read(data: Path | Interactions | None) -> Interactions:
    """A data set by its path, or as it is; None: the embedded one."""
    if data is None:
        return make_demo()
    return data if isinstance(data, Interactions) else read_interactions(data)


def everything(data: Interactions) -> Split:
    """All events in training: what the peers' scripts measure."""
    return Split(data, data.offsets[1:].copy(), data.offsets[1:].copy(), "none", {})


def reference_params(model: str, max_len: int | None, **changes: Any) -> dict[str, Any]:
    """The reference configuration of a model, reg_weight 0, with changes that are not None."""
    if model not in REFERENCE_CONFIGURATIONS:
        raise ConfigError(f"model is {model!r}, expected one of {', '.join(REFERENCE_CONFIGURATIONS)}")
    params = {**REFERENCE_CONFIGURATIONS[model], "reg_weight": 0.0}
    params |= {key: value for key, value in {"max_seq_len": max_len, **changes}.items() if value is not None}
    if params.get("loss") == "cross_entropy":
        params["neg_samples"] = 0
    return params


def train_throughput(
    model: str,
    data: Path | Interactions | None,
    max_len: int | None = None,
    stride: int | None = None,
    *,
    batch_size: int = 2048,
    embedding_size: int | None = None,
    loss: str | None = None,
    precision: str = "fp32",
    execution: str = "auto",
    updates: str = "auto",
    table: str = "replicated",
    per_target: bool = False,
    seconds: float = 20.0,
    warmup_seconds: float = 2.0,
    device: str | torch.device = "auto",
) -> dict[str, Any]:
    """Trains for some seconds and says how fast.

    Runs Trainer, the loop of `fastseq train`, on all events of the data, without validation and checkpoints. A
    first run of ``warmup_seconds`` is not counted. ``device`` is as ``fastseq.load`` takes it. Started by torchrun,
    processes train together, with parts of the tables where ``table`` is "sharded".

    Returns:
        targets_per_s, steps, targets, seconds, stride, batch_size, first_loss, last_loss, execution and updates (in
        words), device (its name), peak_rss_mb, config, versions.
    """
    device = find_device(device)
    interactions = read(data)
    changes = {"window_stride": stride, "batch_size": batch_size, "embedding_size": embedding_size, "loss": loss}
    params = reference_params(model, max_len, **changes)
    kept: dict[str, Any] = {"precision": precision, "per_target": per_target}
    ranks = Ranks.join(device)
    shards = Shards(ranks.rank, ranks.world_size) if table == "sharded" and ranks.world_size > 1 else None

    def run(limit: float) -> Trainer:
        reset_peak_rss()
        # The clock ends it, not the epochs.
        how: Any = {**kept, "execution": execution, "updates": updates}
        options = TrainingOptions(epochs=1_000_000, validation_metric=None, max_seconds=limit, **how)
        return Trainer(_built(model, params, interactions, device, shards), everything(interactions), options)

    if warmup_seconds > 0:
        run(warmup_seconds).fit()
    trainer = run(seconds)
    result, built = trainer.fit(), trainer.model
    return {
        "targets_per_s": round(result.targets / result.seconds, 1),
        "seconds": round(result.seconds, 3),
        "stride": 1 if per_target else built.window_stride or built.max_seq_len,
        "batch_size": batch_size,
        **{
            key: getattr(result, key) for key in ("steps", "targets", "first_loss", "last_loss", "execution", "updates")
        },
        **kept,
        **_circumstances(built, data, interactions),
    }


def probe(model: SequentialRecommender, split: Split, options: TrainingOptions) -> tuple[float, float | None]:
    """Targets a second of training with ``options``, from some seconds of it, and users a second of validating them,
    from one batch; None where nothing is validated. Leaves the model trained."""
    never = 1_000_000
    size = min(options.evaluation_batch_size, options.validation_users or never)
    some: Any = {"epochs": never, "validate_every": never, "validation_users": size, "max_seconds": LOOKED_AT}
    trainer = Trainer(model, split, replace(options, **some))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run will say what there is to say of data and model
        result = trainer.fit()
        speed = trainer.foretold.speed or result.targets_per_second
        if trainer.metric is None:
            return speed, None
        model.settle()
        evaluation = trainer.validate()
    return speed, evaluation.protocol["users"] / evaluation.seconds


def predict_throughput(
    model: str,
    data: Path | None,
    max_len: int | None = None,
    *,
    k: int = 10,
    batch_size: int = 512,
    seconds: float = 10.0,
    device: str | torch.device = "auto",
) -> dict[str, Any]:
    """How fast ``recommend`` answers, seen items filtered, with an untrained model of the reference configuration.

    Returns:
        histories_per_s, calls, p50_ms, p99_ms (of one call), batch_size, k, device (its name), peak_rss_mb, config,
        versions.
    """
    device = find_device(device)
    interactions = read(data)
    built = _built(model, reference_params(model, max_len), interactions, device).eval()
    offsets, tape = interactions.offsets, interactions.items
    users = itertools.cycle(np.random.default_rng(0).permutation(interactions.n_users).tolist())

    def call_seconds() -> float:
        batch = list(itertools.islice(users, batch_size))
        histories = [tape[offsets[user] : offsets[user + 1]] for user in batch]
        before = time.perf_counter()
        built.recommend(histories, k, users=batch if built.needs_user else None)
        return time.perf_counter() - before

    reset_peak_rss()
    for _ in range(3):
        call_seconds()  # warms up
    times: list[float] = []
    total = 0.0
    while total < seconds:
        times.append(call_seconds())
        total += times[-1]
    p50, p99 = (round(1e3 * float(np.percentile(times, share)), 3) for share in (50, 99))
    return {
        "histories_per_s": round(batch_size * len(times) / total, 1),
        "calls": len(times),
        "p50_ms": p50,
        "p99_ms": p99,
        "batch_size": batch_size,
        "k": k,
        **_circumstances(built, data, interactions),
    }


def _built(
    model: str, params: dict[str, Any], data: Interactions, device: torch.device, shards: Shards | None = None
) -> SequentialRecommender:
    return MODELS[model](params, {"n_users": data.n_users, "n_items": data.n_items}, shards=shards).to(device)


def _circumstances(
    model: SequentialRecommender, given: Path | Interactions | None, data: Interactions
) -> dict[str, Any]:
    name = "generated" if isinstance(given, Interactions) else "demo" if given is None else given.name
    return {
        "device": device_name(model.item_embedding.weight.device),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "data": {"name": name, "users": data.n_users, "items": data.n_items, "events": data.n_events},
        "config": {"model": type(model).__name__, **model.get_params()},
        "versions": versions(),
    }


def versions() -> dict[str, Any]:
    """What a figure depends on besides the code: versions, threads, processor, instruction set."""
    try:
        from .._C import isa

        instructions = isa()
    except ImportError:
        instructions = "none"
    return {
        "fastseq": __version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "instructions": instructions,
    }
