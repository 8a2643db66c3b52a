"""From a configuration to run folders: what `fastseq train` does, without a word printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..data.baselines import Popularity
from ..data.checks import check_interactions, check_lengths
from ..data.filters import RATED, apply_filter
from ..data.findings import DataReport, Finding, by_severity
from ..data.interactions import Interactions
from ..data.readers import read_interactions, read_split
from ..data.split import Split
from ..data.strategies import warprec_split
from ..data.synthetic import make_demo
from ..devices import claim_device, peak_memory_mb, reset_peak_memory
from ..errors import ConfigError, DataError
from ..models import MODELS
from ..models.base import SequentialRecommender
from ..models.recommend import Catalogue
from ..models.shards import Shards
from ..training import Callback, Evaluation, RunFolder, Trainer, TrainingOptions, TrainResult, checkpoint, evaluate
from ..training.breakdown import By
from ..training.distributed import Ranks
from ..training.metrics import NOVELTY_METRICS, parse_metric
from ..training.options import Precision
from ..training.plan import DataSize, Plan
from ..training.plan import plan as memory_plan
from ..training.throughput import probe
from .configuration import Config, ModelConfig, Reader, load_config

DEFAULT_LENGTH = 200  # max_seq_len of SASRec and GRU4Rec
# Lightning's names, as in WarpRec's files, and ours.
PRECISIONS: dict[str, Precision] = {
    "32-true": "fp32",
    "bf16-mixed": "bf16",
    "fp32": "fp32",
    "tf32": "tf32",
    "bf16": "bf16",
}


@dataclass(frozen=True)
class Outcome:
    """One trained model: its run folder, how training went, and its test metrics.

    ``evaluation`` is None where training was interrupted or the split has no test targets. ``peak_rss_mb`` is of the
    process; the result's ``peak_memory_mb`` is that, or of the GPU's tensors, the test included.
    """

    name: str
    run: RunFolder
    result: TrainResult
    evaluation: Evaluation | None
    peak_rss_mb: float
    plan: Plan


def read(config: Config) -> Interactions:
    """The interactions of a configuration, filtered.

    Raises:
        DataError: naming file, line and column.
    """
    reader = config.reader
    if reader.loading_strategy == "split":
        return _given_split(config).interactions
    strategies = [config.splitter.test_splitting, config.splitter.validation_splitting]
    random = any(each is not None and each.strategy.startswith("random") for each in strategies)
    if reader.local_path is None:
        data = make_demo()
        data = dataclasses.replace(data, order=np.arange(data.n_events)) if random else data
    else:
        if not reader.local_path.exists():
            raise ConfigError(
                f"reader.local_path: {reader.local_path} does not exist (a relative path counts from {Path.cwd()}); "
                "evaluate, recommend and verify take another with --data"
            )
        data = read_interactions(
            reader.local_path,
            keep_order=random,
            **format_of_reader(reader),
            **columns_of_reader(reader, reader.header, bool(set(RATED) & config.filtering.keys())),
        )
    for name, parameters in config.filtering.items():
        data = apply_filter(data, name, **(parameters or {}))
    return data


def format_of_reader(reader: Reader) -> dict[str, Any]:
    """Format and separator as ``read_interactions`` takes them."""
    tabular = "csv" if reader.sep not in (None, "\t") else "tsv"
    kind = {"auto": None, "tabular": tabular}.get(reader.file_format, reader.file_format)
    return {"format": kind, "separator": reader.sep if kind in (None, "csv", "tsv") else None}


def columns_of_reader(reader: Reader, header: bool, rated: bool = False) -> dict[str, Any]:
    """The columns as ``read_interactions`` takes them; without a header as WarpRec orders them, or by number."""
    labels, types = reader.labels, reader.dtypes
    names = {"user": labels.user_id_label, "item": labels.item_id_label, "timestamp": labels.timestamp_label}
    names["rating"] = labels.rating_label if rated else None
    if not header:
        order = {"user": 0, "item": 1, "rating": 2, "timestamp": 3}
        names = {role: order[role] if isinstance(name, str) else name for role, name in names.items()}
    declared = {"user": types.user_id_type, "item": types.item_id_type}
    id_types = {role: "str" if kind == "str" else "int" for role, kind in declared.items() if kind is not None}
    return {**names, "header": header, "id_types": id_types}


def _given_split(config: Config) -> Split:
    """The three files of ``reader.split``; validation may be absent."""
    reader, given = config.reader, config.reader.split
    assert given is not None  # the configuration has seen to it
    if config.filtering:
        raise ConfigError("filtering does not apply to reader.loading_strategy: split; filter before you split")
    if not given.file("validation").exists() and (given.local_path / "1").is_dir():
        raise ConfigError(
            f"reader.split.local_path: {given.local_path} holds folds and no validation{given.extension}: WarpRec's "
            "pipelines train one model a fold, fastseq train does not"
        )
    for part in ("train", "test"):
        if not given.file(part).exists():
            raise ConfigError(
                f"reader.split.local_path: {given.file(part)} does not exist (a relative path counts from {Path.cwd()})"
            )
    tabular = given.file_format == "tabular"
    validation = given.file("validation") if given.file("validation").exists() else None
    parts = read_split(
        given.file("train"),
        validation,
        given.file("test"),
        format=("tsv" if given.sep == "\t" else "csv") if tabular else "parquet",
        separator=given.sep if tabular else None,
        **columns_of_reader(reader, given.header or not tabular),
    )
    if config.splitter.cold == "drop":
        parts = parts.warm()
    if not len(parts.part("test")):
        raise ConfigError(f"reader.split.local_path: no user of {given.file('test')} has training events")
    return parts


def read_and_split(config: Config) -> tuple[Interactions, Split]:
    """The filtered interactions, and their split as the configuration says.

    Raises:
        ConfigError: if the two parts contradict each other, or nothing is left to test on.
        DataError: if the data cannot be split so.
    """
    if config.reader.loading_strategy == "split":
        parts = _given_split(config)
        return parts.interactions, parts
    data = read(config)
    return data, split_of(config, data)


def split_of(config: Config, data: Interactions) -> Split:
    """The split of the filtered interactions of a configuration.

    Raises:
        ConfigError, DataError: as ``read_and_split``.
    """
    splitter = config.splitter
    test, validation = splitter.test_splitting, splitter.validation_splitting
    try:
        parts = warprec_split(data, test.spec, None if validation is None else validation.spec, splitter.cold)
    except DataError as error:
        raise DataError(f"splitter: {error}") from error
    except ValueError as error:
        raise ConfigError(f"splitter: {error}") from error
    if not len(parts.part("test", config.evaluation.history)):
        longest = int(data.lengths.max())
        raise ConfigError(
            f"splitter.test_splitting ({test.strategy}: {test.k or test.ratio or test.timestamp}) leaves no test "
            f"events: the longest of {data.n_users} users has {longest}; hold out less"
        )
    return parts


def look(config: Config, data: Interactions, parts: Split | None, max_seq_len: int | None = None) -> DataReport:
    """What is to be known of the data before the models of a configuration are trained on them.

    Args:
        data, parts: as ``read_and_split`` gives them; None where there is no split.
        max_seq_len: in place of that of the models.

    Raises:
        ConfigError: see build_model.
    """
    with torch.device("meta"):
        models = [build_model(entry, data) for entry in config.models]
    # Uniform negatives are drawn from the items without a training event, too, where those are kept.
    kept = parts is not None and config.splitter.cold == "keep" and not parts.trained_items.all()
    per_user = not models or any(
        model.neg_samples > 0
        and model.negatives == "per_target"
        and not (kept and model.negative_distribution == "uniform")
        for model in models
    )
    shapes = [(model.max_seq_len, model.window_stride, model.needs_context) for model in models]
    if max_seq_len is not None or not shapes:
        shapes = [(max_seq_len or DEFAULT_LENGTH, None, False)]
    (length, stride, context), *others = dict.fromkeys(shapes)
    report = check_interactions(
        data, length, parts, window_stride=stride, whole_context=context, per_user_negatives=per_user
    )
    more = [check_lengths(data, n, parts, window_stride=s, whole_context=c) for n, s, c in others]
    return dataclasses.replace(report, findings=by_severity([*report.findings, *filter(None, more)]))


def worth_saying(report: DataReport, parts: Split) -> list[Finding]:
    """The findings that change the result and that reading, training and ``notes`` do not name by themselves."""
    said = {"mixed_units", "ties", "repeats", "cold_targets", "cold_users"}
    if parts.dropped.get("short_users"):
        said |= {"single_event_users"}
    return [each for each in report.findings if each.severity == "warning" and each.code not in said]


def build_model(
    config: ModelConfig, data: Interactions | DataSize, ranks: Ranks | None = None
) -> SequentialRecommender:
    """The untrained model, with the raw ids attached where there are some; of several ``ranks`` each has a part of the
    tables, if the configuration says so.

    Raises:
        ConfigError: naming the hyper-parameter, its value and what is accepted.
    """
    info = {"n_users": data.n_users, "n_items": data.n_items}
    divided = config.optimization.table == "sharded" and ranks is not None and ranks.world_size > 1
    shards = Shards(ranks.rank, ranks.world_size) if divided and ranks is not None else None
    try:
        model = MODELS[config.name](config.params, info, seed=config.optimization.properties.seed, shards=shards)
    except ValueError as error:
        raise ConfigError(f"models.{error}") from error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise ConfigError(
            f"models.{config.name}: its weights for {data.n_items} items and {data.n_users} users do not fit into "
            "memory; lower embedding_size, max_seq_len or the other sizes"
        ) from error
    if isinstance(data, Interactions):
        model.catalogue = Catalogue(data.item_ids, data.user_ids)
    return model


def options_of(config: Config, model: ModelConfig) -> TrainingOptions:
    """The trainer's options of one model of a configuration."""
    optimization, stopping, evaluation = model.optimization, model.early_stopping, config.evaluation
    schedule = optimization.lr_scheduler
    options = TrainingOptions(
        seed=optimization.properties.seed,
        precision=PRECISIONS[optimization.precision],
        execution=optimization.execution,
        clip_norm=optimization.gradient_clip or None,
        optimizer=optimization.optimizer.name,
        optimizer_params=optimization.optimizer.params,
        updates=optimization.optimizer.updates,
        schedule=schedule.name,
        schedule_params={key: value for key, value in schedule.params.items() if key != "warmup_steps"},
        warmup_steps=schedule.params.get("warmup_steps", 0),
        validation_metric=evaluation.validation_metric,
        validate_every=optimization.eval_every_n,
        validation_users=evaluation.validation_users,
        evaluation_batch_size=evaluation.batch_size,
        protocol=evaluation.strategy,
        n_negatives=evaluation.num_negatives,
        evaluation_seed=evaluation.seed,
        mask_seen=evaluation.mask,
        history=evaluation.history,
    )
    given = config.reader.loading_strategy == "split"
    if not given and config.splitter.validation_splitting is None and stopping is None:
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
    on_read: Callable[[Interactions, Split], None] | None = None,
    on_start: Callable[[str, Interactions, Split], None] | None = None,
    callbacks: Callable[[str], Sequence[Callback]] = lambda name: (),
) -> Iterator[Outcome]:
    """Trains and tests every model of a configuration, one after the other.

    Args:
        resume: go on in existing run folders.
        overwrite: delete what earlier runs left in them.
        on_read: called with the interactions before the split, and the split.
        on_start: called before each model.
        callbacks: what is told of the training of the model of a name, beside the configuration's trackers.

    Yields:
        One outcome a model; after an interrupted one, no more.

    Raises:
        ConfigError, DataError, CheckpointError: see the functions above and Trainer.
        ImportError: if the package of a tracker is missing.
    """
    is_first = Ranks.join(device_of(config, config.models[0])).is_first
    trackers = {x.name: config.dashboard.trackers(config.run_name(x.name)) for x in config.models if is_first}
    data, parts = read_and_split(config)
    if on_read is not None:
        on_read(data, parts)
    data = parts.interactions

    def built(entry: ModelConfig) -> SequentialRecommender:
        device = device_of(config, entry)
        return build_model(entry, data, Ranks.join(device)).to(device)

    # Everything is planned, then built once before any model is trained, so that a mistake in the last shows at once.
    size = DataSize.of(parts)
    ranks = [Ranks.join(device_of(config, entry)) for entry in config.models]
    plans = [plan_of(config, entry, size, each) for entry, each in zip(config.models, ranks, strict=True)]
    for entry, plan, each in zip(config.models, plans, ranks, strict=True):
        check(plan, entry, each.is_first)
    for entry in config.models:
        Trainer(built(entry), parts, options_of(config, entry))
        if not (resume or overwrite):
            RunFolder.refuse_used(config.run_path(entry.name))

    def trained(entry: ModelConfig, plan: Plan) -> Outcome:
        """In a function, so that nothing of one model is there when the next is built."""
        device = device_of(config, entry)
        reset_peak_memory(device)
        model = built(entry)
        if on_start is not None:
            on_start(entry.name, data, parts)
        path = config.run_path(entry.name)
        options, told = options_of(config, entry), [*callbacks(entry.name), *trackers.get(entry.name, ())]
        trainer = Trainer(model, parts, options, path, told, resume=resume, overwrite=overwrite, plan=plan)
        run = RunFolder.existing(path)
        if trainer.ranks.is_first:
            run.write_config(config.resolved(entry, model.get_params()))
        evaluation: Evaluation | None = None

        def tested(result: TrainResult) -> Evaluation | None:
            nonlocal evaluation
            if result.stopped != "interrupted" and len(parts.part("test")):
                evaluation = score(config, entry, model, parts, ranks=trainer.ranks, per_user=True)
                if trainer.ranks.is_first:
                    run.write_evaluation(evaluation)
            return evaluation

        result = trainer.fit(tested)
        result = dataclasses.replace(result, peak_memory_mb=peak_memory_mb(device))
        return Outcome(entry.name, run, result, evaluation, peak_memory_mb(torch.device("cpu")), plan)

    for entry, plan in zip(config.models, plans, strict=True):
        outcome = trained(entry, plan)
        yield outcome
        if outcome.result.stopped == "interrupted":
            return


def plan_of(config: Config, entry: ModelConfig, size: DataSize, ranks: Ranks) -> Plan:
    """What training a model of a configuration on such data takes, a process of ``ranks``.

    Raises:
        ConfigError: see build_model.
    """
    with torch.device("meta"):
        model = build_model(entry, size, ranks)
    options, cut_offs = options_of(config, entry), len(config.evaluation.top_k)
    processes = ranks.world_size
    return memory_plan(model, size, options, device_of(config, entry), processes=processes, cut_offs=cut_offs)


def plan(config: Config, sizes: tuple[int, int, int] | None, processes: int, time: bool) -> list[Plan]:
    """What each model of a configuration takes.

    Args:
        sizes: items, users and events of data that need not be there; None: the configuration's are read.
        processes: that train together; figures are of each.
        time: also train each model for some seconds, on generated data with ``sizes``, and validate on some users. Not
            where it does not fit, and not for several processes.

    Raises:
        ConfigError, DataError: as ``train``.
    """
    if sizes is None:
        parts = read_and_split(config)[1]
        size = DataSize.of(parts)
    else:
        parts, size = None, assumed_size(config, *sizes)
    plans = [plan_of(config, entry, size, Ranks(0, processes)) for entry in config.models]
    for number, entry in enumerate(config.models):
        if time and processes == 1 and plans[number].fits:
            parts = parts or size.generated()
            model = build_model(entry, parts.interactions).to(device_of(config, entry))
            plans[number] = plans[number].timed(*probe(model, parts, options_of(config, entry)))
    return plans


def check(plan: Plan, entry: ModelConfig, warn: bool = True) -> None:
    """Warns of a run that comes near the memory there is, in one of its processes.

    Raises:
        ConfigError: where it cannot fit.
    """
    params, less = entry.params, []
    own = plan.peak - plan.process
    tables = plan.weights + plan.optimizer + plan.step > own / 2
    if plan.updates.startswith("dense") and tables and params["neg_samples"] > 0:
        less.append("optimizer: rows (no gradient of whole tables)")
    if tables:
        less.append(f"a smaller embedding_size (it is {params['embedding_size']})")
        if entry.optimization.table == "replicated" and params["neg_samples"] > 0:
            less.append("table: sharded over several processes")
    if plan.step > own / 10:
        less.append("a smaller batch_size")
    if plan.evaluation > own / 10:
        less.append("a smaller evaluation.batch_size")
    plan.check(", ".join(less) or "less data, or another machine", warn)


def assumed_size(config: Config, n_items: int, n_users: int, n_events: int) -> DataSize:
    """That of data of so many, by the configuration's splits; what a split by time holds out is left in training."""
    parts = (config.splitter.validation_splitting, config.splitter.test_splitting)
    validation, test = (0 if part is None else part.k or part.ratio or 0 for part in parts)
    return DataSize.assumed(n_users, n_items, n_events, validation, test)


def score(
    config: Config,
    entry: ModelConfig | None,
    model: Any,
    parts: Split,
    part: Literal["validation", "test"] = "test",
    ranks: Ranks | None = None,
    per_user: bool = False,
    by: Sequence[By] = (),
) -> Evaluation:
    """Metrics of a model, or of a baseline (no entry), by the configuration's protocol, which is attached in full."""
    options = config.evaluation
    asked = {parse_metric(f"{name}@1")[0] for name in options.metrics}
    evaluation = evaluate(
        model,
        parts,
        part,
        ks=options.top_k,
        protocol=options.strategy,
        n_negatives=options.num_negatives,
        seed=options.seed,
        mask_seen=options.mask,
        history=options.history,
        batch_size=options.batch_size,
        per_user=per_user or not asked.isdisjoint(NOVELTY_METRICS),
        by=by,
        ranks=ranks,
    )
    evaluation.protocol["training_seed"] = entry.optimization.properties.seed if entry is not None else None
    return evaluation


def notes(evaluation: Evaluation) -> list[str]:
    """What a reader of the scores must know about their targets, one line each."""
    protocol, split, lines = evaluation.protocol, evaluation.protocol["split"], []
    if short := split["dropped"].get("short_users"):
        lines.append(f"{short:,} users are too short for the split and left out")
    if dropped := split["dropped"].get(protocol["part"]):
        lines.append(
            f"{dropped:,} {protocol['part']} targets are left out: their user or item has no training event "
            "(splitter.cold: keep counts them as misses)"
        )
    if unknown := protocol["cold_targets"]["targets"]:
        lines.append(
            f"{unknown:,} of {protocol['targets']:,} {protocol['part']} targets are items without a training event and "
            "count as misses (splitter.cold: drop leaves them out)"
        )
    if left_out := protocol["cold_users"]["left_out"]:
        lines.append(f"{left_out:,} users with {protocol['part']} targets have no event before them and are left out")
    if tied := split[f"{protocol['part']}_users_cut_in_ties"]:
        lines.append(
            f"of {tied:,} users the first {protocol['part']} target has the same time as the event before it: which is "
            f"held out follows from the order of the file ({split['tied_events_share']:.1%} of all events are tied)"
        )
    if masked := protocol["masked_targets"]:
        lines.append(
            f"{masked:,} of {protocol['targets']:,} {protocol['part']} targets can never be ranked: they are among the "
            "seen items left out, and count as misses (evaluation.mask_seen: none ranks them)"
        )
    elif repeated := protocol["repeated_targets"]:
        lines.append(f"{repeated:,} of {protocol['targets']:,} {protocol['part']} targets were seen in training")
    return lines


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
        if config.reader.split is not None and config.reader.loading_strategy == "split":
            config.reader.split.local_path = data
        else:
            config.reader.local_path = data
    return config


def trained_split(run: RunFolder) -> dict[str, Any]:
    """What ``Split.describe`` said of the split that a run was trained on; empty where the run does not say."""
    split: dict[str, Any] = checkpoint.load(run.model_path, metadata_only=True)[1].get("split", {})
    return split


def changed_since(run: RunFolder, parts: Split) -> str:
    """What differs from the data and split that a run was trained on, in words; empty where nothing does."""
    trained, here = trained_split(run), parts.describe()
    if "split_hash" not in trained:
        return "this run was trained by an earlier fastseq, whose splits and masks differ"
    return "; ".join(
        f"the {what} has changed since this run was trained ({trained[key][:12]} then, {here[key][:12]} now)"
        for what, key in (("data", "data_hash"), ("split", "split_hash"))
        if trained[key] != here[key]
    )


def device_of(config: Config, entry: ModelConfig) -> torch.device:
    """The model's own device, or that of all, which becomes the current one.

    Raises:
        ConfigError: naming the key, if there is no such device here.
    """
    if entry.optimization.device is not None:
        return claim_device(entry.optimization.device, f"models.{entry.name}.optimization.device")
    return claim_device(config.general.device, "general.device")
