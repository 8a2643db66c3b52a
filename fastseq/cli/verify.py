"""``fastseq verify``: fastseq beside WarpRec, on the user's configuration and data.

The same weights must give the same scores, the same batch the same loss and gradients; then a training step of each is
timed, in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.interactions import Interactions
from ..data.loader import Loader
from ..data.negatives import NegativeSampler
from ..devices import device_name, find_device, wait_for
from ..errors import ConfigError
from ..models import MODELS, SequentialRecommender
from ..models.hyperparameters import OBJECTIVE
from ..ops import make_rng
from . import experiment
from .configuration import Config, Reader, load_tree, parse_config

# Largest relative error that passes. In float64, which the kernels for a GPU do not have, rounding cannot hide a
# difference of meaning.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}

WINDOW_BATCH = 2048  # targets of a timed step on shared windows, as in the reference configurations


@dataclass
class Comparison:
    """One model on both sides.

    Attributes:
        errors: relative errors ‖ours − theirs‖ / ‖theirs‖ by (what, dtype), the largest over the parameters for
            gradients; ``worst`` names that parameter.
        batch_size: targets of a timed step.
        reference_seconds, seconds: one training step of each on the same batch, medians.
        window_speed: targets per second of training on shared windows of that stride, over a few steps of the core
            model, without WarpRec's adapter and trainer, on batches of ``window_batch_size`` targets.
    """

    model: str
    errors: dict[tuple[str, str], float] = field(default_factory=dict)
    worst: str = ""
    batch_size: int = 0
    reference_seconds: float = 0.0
    seconds: float = 0.0
    window_stride: int = 0
    window_batch_size: int = WINDOW_BATCH
    window_speed: float = 0.0

    @property
    def differing(self) -> list[str]:
        """What differs by more than its tolerance, as "scores (float64)"; a NaN differs."""
        limits = {str(dtype).removeprefix("torch."): limit for dtype, limit in TOLERANCES.items()}
        return [f"{what} ({dtype})" for (what, dtype), error in self.errors.items() if not error <= limits[dtype]]


@dataclass
class Report:
    """All models of a configuration, what they were compared with, on what data and which device."""

    reference: str
    data: str
    device: str
    comparisons: list[Comparison]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not any(comparison.differing for comparison in self.comparisons)


@dataclass(frozen=True)
class Reference:
    """What fastseq is compared with.

    Attributes:
        name: in words, for the report.
        build: (theirs, ours), two models with one ``state_dict``, from a model's name, params, info and seed.
    """

    name: str
    build: Callable[[str, dict[str, Any], dict[str, int], int], tuple[Any, Any]]


def verify(
    config: Path,
    data: Path | None = None,
    *,
    batch_size: int = 256,
    repeats: int = 3,
    reference: Reference | None = None,
    device: str | torch.device = "cpu",
) -> Report:
    """Compares and times every model of a configuration.

    Args:
        config: fastseq's or WarpRec's YAML. Of a search space the first value is taken.
        data: interactions instead of the configuration's.
        batch_size: targets of the compared and timed batch, or the configuration's if that is smaller.
        repeats: timed steps of each side, in turn; at least 1.
        reference: what to compare with; None: the installed WarpRec.
        device: as ``fastseq.load`` takes it; on a GPU both sides compute in float32 only.

    Raises:
        ConfigError, DataError: naming the key, or the file and line, that cannot be used.
        ImportError: if WarpRec is the reference and cannot be used, with the command that installs it.
    """
    device = find_device(device)
    settings = read_config(config, data)
    reference = reference or warprec_reference()
    interactions = experiment.read(settings)
    comparisons = []
    for entry in settings.models:
        seed = entry.optimization.properties.seed
        try:
            params = MODELS[entry.name].check_params(entry.params)
        except ConfigError as error:
            raise ConfigError(f"{config}: models.{error}") from error
        stride = params["window_stride"] or params["max_seq_len"]
        # WarpRec's objective is what both sides have.
        params = {key: value for key, value in params.items() if key not in OBJECTIVE}
        params["batch_size"] = min(params["batch_size"], batch_size)
        info = {"n_users": interactions.n_users, "n_items": interactions.n_items}
        theirs, ours = reference.build(entry.name, params, info, seed)
        comparison = Comparison(entry.name, batch_size=params["batch_size"], window_stride=stride)
        comparisons.append(comparison)
        _perturb(ours, seed)
        padded = padded_batch(interactions, params, MODELS[entry.name].needs_user, seed)
        batch = tuple(tensor.to(device) for tensor in padded)
        state = ours.state_dict()
        for dtype in TOLERANCES if device.type == "cpu" else [torch.float32]:
            for model in (theirs, ours):
                model.to(device, dtype).load_state_dict(state, strict=True)
            _compare(comparison, theirs, ours, batch, MODELS[entry.name].needs_user, dtype)
        _time(comparison, theirs, ours, batch, repeats)
        params |= {"window_stride": stride, "batch_size": comparison.window_batch_size}
        _time_windows(comparison, MODELS[entry.name](params, info, seed=seed).to(device), interactions)
    # A misspelt section must not pass for the user's data.
    path = settings.reader.local_path or "the embedded demo data (neither reader.local_path nor --data names a file)"
    sizes = f"{interactions.n_users:,} users, {interactions.n_items:,} items, {interactions.n_events:,} events"
    return Report(reference.name, f"{path}: {sizes}", device_name(device), comparisons)


def warprec_reference() -> Reference:
    """WarpRec's own classes, beside fastseq's as WarpRec would build them.

    Raises:
        ImportError: if WarpRec is not installed or of another version, with the command that installs it.
    """
    from .. import warprec as adapters  # checks the version of WarpRec before it is imported

    from warprec.recommenders import sequential_recommender as originals  # isort: skip

    def build(name: str, params: dict[str, Any], info: dict[str, int], seed: int) -> tuple[Any, Any]:
        pair = getattr(originals, name)(params, info, seed=seed), getattr(adapters, name)(params, info, seed=seed)
        for model in pair:
            model.log = lambda *args, **kwargs: None  # there is no trainer to log to
        return pair

    return Reference(f"WarpRec {metadata.version('warprec')}", build)


def read_config(path: Path, data: Path | None) -> Config:
    """What verify needs of a configuration: reader, filters and the models that fastseq has.

    Raises:
        ConfigError: if it cannot be read, or names none of them.
    """
    tree, origin = load_tree(path)
    if not isinstance(tree.get("models"), dict):
        raise ConfigError(f"{path}: expected a section 'models:' with at least one of {', '.join(MODELS)}")
    known = {name.lower(): name for name in MODELS}
    models: dict[str, dict[str, Any]] = {}
    for name, entry in tree["models"].items():
        plain = known.get(str(name).lower().removeprefix("fast"))
        if plain is None or not isinstance(entry, dict):
            continue
        trial = _one_trial(entry, f"{origin}: models.{name}")
        if models.setdefault(plain, trial) != trial:
            raise ConfigError(
                f"{origin}: 'models' has several entries for {plain} that differ, {name} among them; leave one and "
                "verify them one after the other"
            )
    if not models:
        raise ConfigError(f"{path}: 'models' names none of {', '.join(MODELS)}, so there is nothing to verify")
    section = _section(tree, "reader", origin)
    reader = {key: value for key, value in section.items() if key in Reader.model_fields}
    if "loading_strategy" in reader:  # WarpRec, which requires it, reads columns whatever the file is called
        reader.setdefault("file_format", "tabular")
    if data is not None:
        reader["local_path"] = str(data)
        # Another file than the one that the configuration describes: its name says what it is.
        for key in ("file_format", "sep", "labels", "header", "dtypes", "loading_strategy", "split"):
            reader.pop(key, None)
    return parse_config({"reader": reader, "filtering": tree.get("filtering"), "models": models}, origin)


def _section(tree: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """A section inside another; none at all is an empty one."""
    section = tree.get(key)
    if section is not None and not isinstance(section, dict):
        raise ConfigError(f"{where}: {key} is {section!r}, expected a section with keys of its own")
    return section or {}


def _one_trial(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The first trial of a search space, without what does not change a model."""
    trial = {}
    for key, value in entry.items():
        if value == []:
            raise ConfigError(f"{where}.{key} is an empty list, expected a value or a search space")
        if isinstance(value, list):
            named = isinstance(value[0], str) and len(value) > 1 and key not in ("loss", "precision")
            value = value[1] if named else value[0]
        if key not in ("meta", "early_stopping", "optimization", "precision"):
            trial[str(key)] = value
    seed = _section(_section(entry, "optimization", where), "properties", f"{where}.optimization").get("seed")
    if seed is not None:
        trial["optimization"] = {"properties": {"seed": seed}}
    return trial


def padded_batch(data: Interactions, params: Mapping[str, Any], needs_user: bool, seed: int) -> tuple[Tensor, ...]:
    """A batch of WarpRec's shape from targets drawn over all of the data.

    Returns:
        ``(user [B],)`` where needed, then ``seq [B, L]``, ``len [B]``, ``pos [B]`` and, with negatives, ``neg [B, K]``.
    """
    length, padding = params["max_seq_len"], data.n_items
    targets = np.setdiff1d(np.arange(data.n_events), data.offsets[:-1])
    drawn = np.random.default_rng(seed).choice(targets, min(params["batch_size"], len(targets)), replace=False)
    users = np.searchsorted(data.offsets, drawn, side="right") - 1
    starts = np.maximum(data.offsets[users], drawn - length)
    sequences = torch.full((len(drawn), length), padding)
    for row, (start, stop) in enumerate(zip(starts, drawn, strict=True)):
        sequences[row, : stop - start] = torch.from_numpy(data.items[start:stop])
    parts = [sequences, torch.from_numpy(drawn - starts), torch.from_numpy(data.items[drawn])]
    if needs_user:
        parts.insert(0, torch.from_numpy(users))
    if params["neg_samples"] > 0:
        sampler = NegativeSampler(data, params["neg_samples"])
        sampler.check_drawable()
        parts.append(sampler.sample(torch.from_numpy(users), parts[-1], make_rng(seed))[0])
    return tuple(parts)


def _perturb(model: torch.nn.Module, seed: int) -> None:
    """Moves every weight a little, zeros and ones of the initialisation and the padding row among them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def _relative(ours: Tensor, theirs: Tensor, floor: float = 0.0) -> float:
    size = max(float(theirs.double().norm()), floor)
    return float((ours.double() - theirs.double()).norm()) / size if size else float(ours.double().norm())


def _compare(
    result: Comparison, theirs: Any, ours: Any, batch: tuple[Tensor, ...], needs_user: bool, dtype: torch.dtype
) -> None:
    """Scores, loss and gradients, dropout off: each side draws masks of its own."""
    no_user = torch.zeros_like(batch[0][:, 0]) if not needs_user else None
    user, sequences, lengths = batch[:3] if needs_user else (no_user, *batch[:2])
    results: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
    for model in (theirs, ours):
        model.eval()
        with torch.no_grad():
            scores = model.predict(user_indices=user, user_seq=sequences, seq_len=lengths)
        model.zero_grad(set_to_none=True)
        loss = model.training_step(batch, 0)
        loss.backward()
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
        }
        results.append((scores, loss.detach(), gradients))
        model.zero_grad(set_to_none=True)
    (scores, loss, expected), (our_scores, our_loss, gradients) = results
    # A gradient that is zero but for rounding is measured by the others.
    floor = 1e-3 * max(float(gradient.norm()) for gradient in expected.values())
    errors = {name: _relative(gradients[name], gradient, floor) for name, gradient in expected.items()}
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
    name = str(dtype).removeprefix("torch.")
    result.worst = worst
    result.errors["scores", name] = _relative(our_scores, scores)
    result.errors["loss", name] = _relative(our_loss, loss)
    result.errors["gradients", name] = errors[worst]


def _step(model: Any, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    loss().backward()
    optimizer.step()
    wait_for(optimizer.param_groups[0]["params"][0].device)
    return time.perf_counter() - start


def _time(result: Comparison, theirs: Any, ours: Any, batch: tuple[Tensor, ...], repeats: int) -> None:
    """A training step of both on the same batch, in turn; the first of each is not counted."""
    seconds: list[list[float]] = [[], []]
    pairs = [(model.float().train(), model.configure_optimizers()) for model in (theirs, ours)]
    for _ in range(repeats + 1):
        for (model, optimizer), times in zip(pairs, seconds, strict=True):
            times.append(_step(model, optimizer, lambda model=model: model.training_step(batch, 0)))  # type: ignore[misc]
    result.reference_seconds, result.seconds = (statistics.median(times[1:]) for times in seconds)


def _time_windows(result: Comparison, model: SequentialRecommender, data: Interactions, limit: float = 2.0) -> None:
    """Shared windows, loader and optimizer included, for about ``limit`` seconds after a first step."""
    optimizer = model.train().configure_optimizers()
    sampler = NegativeSampler(data, model.neg_samples) if model.neg_samples > 0 else None
    loader = Loader(
        data,
        batch_size=result.window_batch_size,
        max_len=model.max_seq_len,
        window_stride=model.window_stride,
        seed=model.seed,
        sampler=sampler,
        context=model.needs_context,
        l2=model.reg_weight > 0,
        prefetch=0,
    )
    targets, start, first = 0, 0.0, True
    while True:
        for batch in loader.batches(0):
            here = batch.to(model.item_embedding.weight.device)
            _step(model, optimizer, lambda here=here: model.loss(here))  # type: ignore[misc]
            if first:
                first, start = False, time.perf_counter()
                continue
            targets += batch.n_targets
            if time.perf_counter() - start > limit:
                result.window_speed = targets / (time.perf_counter() - start)
                return
