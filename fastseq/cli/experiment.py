"""From a configuration to run folders: what `fastseq train` does, without a word printed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from .._process import peak_rss_mb, reset_peak_rss
from ..data.baselines import Popularity
from ..data.interactions import Interactions, filter_interactions
from ..data.readers import read_interactions
from ..data.split import Split, leave_k_out, ratio, temporal_holdout
from ..data.synthetic import make_demo
from ..errors import ConfigError, DataError
from ..models import MODELS
from ..models.base import SequentialRecommender
from ..models.recommend import Catalogue
from ..training import Evaluation, Progress, RunFolder, Trainer, TrainingOptions, TrainResult, checkpoint, evaluate
from ..training.distributed import Ranks
from .configuration import Config, ModelConfig, load_config


@dataclass(frozen=True)
class Outcome:
    """One trained model: its run folder, how training went, and its test metrics.

    ``evaluation`` is None where training was interrupted or the split has no test targets.
    """

    name: str
    run: RunFolder
    result: TrainResult
    evaluation: Evaluation | None
    peak_rss_mb: float


def read(config: Config) -> Interactions:
    """The interactions of a configuration, filtered.

    Raises:
        DataError: naming file, line and column.
    """
    reader, labels = config.reader, config.reader.labels
    if reader.local_path is None:
        data = make_demo()
    else:
        tabular = "csv" if reader.sep not in (None, "\t") else "tsv"
        kind = {"auto": None, "tabular": tabular}.get(reader.file_format, reader.file_format)
        if not reader.local_path.is_file():
            what = "is a folder, expected a file" if reader.local_path.is_dir() else "does not exist"
            raise ConfigError(
                f"reader.local_path: {reader.local_path} {what} (a relative path counts from {Path.cwd()}); "
                "evaluate, recommend and verify take another with --data"
            )
        data = read_interactions(
            reader.local_path,
            format=kind,
            user=labels.user_id_label,
            item=labels.item_id_label,
            timestamp=labels.timestamp_label,
            separator=reader.sep if kind in (None, "csv", "tsv") else None,
        )
    filters = config.filtering
    if filters.UserMin is not None:
        keep = filters.UserMin.min_interactions
        data = filter_interactions(data, min_user=keep, min_item=1)
    if filters.ItemMin is not None:
        data = filter_interactions(data, min_user=1, min_item=filters.ItemMin.min_interactions)
    if filters.IterativeKCore is not None:
        core = filters.IterativeKCore.min_interactions
        data = filter_interactions(data, min_user=core, min_item=core)
    return data


def split(config: Config, data: Interactions) -> Split:
    """The data split as the configuration says.

    Raises:
        ConfigError: if the two parts contradict each other, or nothing is left to test on.
        DataError: if the data cannot be split so.
    """
    test = config.splitter.test_splitting
    try:
        parts = _split(config, data)
    except DataError:
        raise
    except ValueError as error:
        raise ConfigError(f"splitter: {error}") from error
    if not len(parts.part("test")):
        longest = int(data.lengths.max())
        raise ConfigError(
            f"splitter.test_splitting ({test.strategy}: {test.k or test.ratio or test.timestamp}) leaves no test "
            f"events: the longest of {data.n_users} users has {longest}; hold out less"
        )
    return parts


def _split(config: Config, data: Interactions) -> Split:
    test, validation = config.splitter.test_splitting, config.splitter.validation_splitting
    if test.strategy == "temporal_leave_k_out":
        return leave_k_out(data, test.k or 1, validation=validation is not None)
    if test.strategy == "temporal_holdout":
        return ratio(data, test=test.ratio or 0.0, validation=(validation.ratio or 0.0) if validation else 0.0)
    moment = validation.timestamp if validation is not None else None
    return temporal_holdout(data, timestamp=test.timestamp, validation_timestamp=moment)


def build_model(config: ModelConfig, data: Interactions) -> SequentialRecommender:
    """The untrained model, with the raw ids attached.

    Raises:
        ConfigError: naming the hyper-parameter, its value and what is accepted.
    """
    info = {"n_users": data.n_users, "n_items": data.n_items}
    try:
        model = MODELS[config.name](config.params, info, seed=config.optimization.properties.seed)
    except ValueError as error:
        raise ConfigError(f"models.{error}") from error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise ConfigError(
            f"models.{config.name}: its weights for {data.n_items} items and {data.n_users} users do not fit into "
            "memory; lower embedding_size, max_seq_len or the other sizes"
        ) from error
    model.catalogue = Catalogue(data.item_ids, data.user_ids)
    return model


def options_of(config: Config, model: ModelConfig) -> TrainingOptions:
    """The trainer's options of one model of a configuration."""
    optimization, stopping = model.optimization, model.early_stopping
    options = TrainingOptions(
        seed=optimization.properties.seed,
        precision="bf16" if optimization.precision in ("bf16", "bf16-mixed") else "fp32",
        clip_norm=optimization.gradient_clip or None,
        schedule=optimization.lr_scheduler.name,
        warmup_steps=optimization.lr_scheduler.params.get("warmup_steps", 0),
        validation_metric=config.evaluation.validation_metric,
        validate_every=optimization.eval_every_n,
        evaluation_batch_size=config.evaluation.batch_size,
        filter_seen=config.evaluation.mask_seen != "none",
    )
    if config.splitter.validation_splitting is None and stopping is None:
        options = dataclasses.replace(options, validation_metric=None)
    if stopping is not None:
        options = dataclasses.replace(
            options, patience=stopping.patience, min_delta=stopping.min_delta, grace_period=stopping.grace_period
        )
    return options


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_start: Callable[[str, Interactions, Split], None] | None = None,
    on_progress: Callable[[str, Progress], None] | None = None,
) -> Iterator[Outcome]:
    """Trains and tests every model of a configuration, one after the other.

    Args:
        resume: go on in existing run folders.
        overwrite: delete what earlier runs left in them.
        on_start: called before each model.
        on_progress: called while it trains; see Trainer.

    Yields:
        One outcome a model; after an interrupted one, no more.

    Raises:
        ConfigError, DataError, CheckpointError: see the functions above and Trainer.
    """
    data = read(config)
    parts = split(config, data)
    # Everything is built once before any model is trained, so that a mistake in the last shows at once.
    for entry in config.models:
        _device(config, entry)
        Trainer(build_model(entry, data), parts, options_of(config, entry))
        if not (resume or overwrite):
            RunFolder.refuse_used(config.run_path(entry.name))
    for entry in config.models:
        reset_peak_rss()
        model = build_model(entry, data).to(_device(config, entry))
        if on_start is not None:
            on_start(entry.name, data, parts)
        path = config.run_path(entry.name)
        report = None if on_progress is None else partial(on_progress, entry.name)
        options = options_of(config, entry)
        trainer = Trainer(model, parts, options, path, report, resume=resume, overwrite=overwrite)
        run = RunFolder.existing(path)
        if trainer.ranks.is_first:
            run.write_config(config.resolved(entry, model.get_params()))
        result = trainer.fit()
        evaluation = None
        if result.stopped != "interrupted" and len(parts.part("test")):
            evaluation = score(config, entry, model, parts, ranks=trainer.ranks)
            if trainer.ranks.is_first:
                run.write_evaluation(evaluation)
        yield Outcome(entry.name, run, result, evaluation, peak_rss_mb())
        if result.stopped == "interrupted":
            return


def score(
    config: Config,
    entry: ModelConfig | None,
    model: Any,
    parts: Split,
    part: Literal["validation", "test"] = "test",
    ranks: Ranks | None = None,
) -> Evaluation:
    """Metrics of a model, or of a baseline (no entry), by the configuration's protocol, which is attached in full."""
    options = config.evaluation
    evaluation = evaluate(
        model,
        parts,
        part,
        ks=options.top_k,
        protocol=options.strategy,
        n_negatives=options.num_negatives,
        seed=options.seed,
        filter_seen=options.mask_seen != "none",
        batch_size=options.batch_size,
        ranks=ranks,
    )
    evaluation.protocol["training_seed"] = entry.optimization.properties.seed if entry is not None else None
    return evaluation


def out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch or Python says that an allocation failed."""
    words = ("DefaultCPUAllocator", "out of memory", "not enough memory", "Storage size", "overflow")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def popularity(config: Config, parts: Split) -> Evaluation:
    """What recommending the most popular items would score by the same protocol."""
    return score(config, None, Popularity(parts), parts)


def config_of_run(run: RunFolder, data: Path | None = None) -> Config:
    """The configuration that a run folder was trained with; ``data`` is where its interactions are now.

    Raises:
        ConfigError: if it is missing or damaged.
    """
    if not run.config_path.is_file():
        raise ConfigError(
            f"{run.config_path}: missing, as in a run made from Python: write its reader, splitter and models "
            "there (docs/configuration.md), or stay in Python: evaluate(fastseq.load(run), split)"
        )
    config = load_config(run.config_path)
    if data is not None:
        config.reader.local_path = data
    return config


def changed_since(run: RunFolder, here: Mapping[str, Any]) -> str:
    """What differs from the data that a run was trained on, in words; empty where nothing does.

    Args:
        here: the entries of ``Split.describe`` to compare.
    """
    trained = checkpoint.load(run.model_path, metadata_only=True)[1].get("split", {})
    return "; ".join(
        f"{key} was {str(trained[key])[:12]} in training and is {str(value)[:12]} now"
        for key, value in here.items()
        if trained.get(key, value) != value
    )


def _device(config: Config, entry: ModelConfig) -> torch.device:
    """The model's own device, or that of all; with several processes on a machine, each has its own GPU."""
    own = entry.optimization.device
    key, name = ("general.device", config.general.device)
    if own is not None:
        key, name = f"models.{entry.name}.optimization.device", own
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{key} is {name!r}, expected auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{key} is {name!r}, expected auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key} is {name!r}, but PyTorch sees no GPU here; use cpu or auto")
    last = max(1, torch.cuda.device_count()) - 1
    if (device.index or 0) > last:
        raise ConfigError(f"{key} is {name!r}, but the last one here is number {last}")
    if device == torch.device("cuda") and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return device
