"""Published scores, reached on the user's own data: what `fastseq reproduce` does, without a word printed.

A row is a configuration of published/, which `fastseq train` takes too, and an entry of published.yaml: the data set
it is for, by counts and hash, and the scores that were published for it.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ..data.interactions import Interactions
from ..data.readers import read_interactions
from ..errors import CheckpointError, ConfigError, DataError, did_you_mean
from ..training import RunFolder, checkpoint
from . import experiment
from .configuration import Config, load_config
from .experiment import Outcome

FOLDER = Path(__file__).parent / "published"  # the table is beside it
METRICS = {"HR": "HR@10", "NDCG": "NDCG@10"}


@dataclass(frozen=True)
class DataSet:
    """One variant of a public data set.

    Attributes:
        files: names that the file goes by.
        users, items, events: how many it has.
        hash: ``Interactions.data_hash``.
        origin: where it comes from.
    """

    title: str
    files: list[str]
    users: int
    items: int
    events: int
    hash: str
    origin: str

    def matches(self, data: Interactions) -> bool:
        """Whether it has as many users, items and events."""
        return (data.n_users, data.n_items, data.n_events) == (self.users, self.items, self.events)


@dataclass(frozen=True)
class Row:
    """What was published for a data set and a protocol.

    Attributes:
        protocol: in words.
        published: scores under the keys of ``METRICS``, with the ``system`` that reached them and the ``source``.
    """

    name: str
    data: DataSet
    protocol: str
    published: list[dict[str, Any]]

    @property
    def path(self) -> Path:
        """The file of the configuration."""
        return FOLDER / f"{self.name}.yaml"

    def config(self, path: Path | None = None, seed: int | None = None, out: Path | None = None) -> Config:
        """The configuration, with another file, seed and place of the run folder (``out``/name/seed-N/model)."""
        config = load_config(self.path)
        if path is not None:
            config.reader.local_path = path
        if seed is not None:
            config.models[0].optimization.properties.seed = seed
            config.writer.dataset_name = f"seed-{seed}"
        config.writer.local_experiment_path = (out or config.writer.local_experiment_path) / self.name
        return config

    def find(self, path: Path | None) -> Path:
        """The data file: ``path``, or the one of a known name in that folder (None: the current one).

        Raises:
            DataError: if there is none, saying where it comes from.
        """
        folder = Path() if path is None else path
        for file in [folder] if folder.is_file() else [folder / name for name in self.data.files]:
            if file.is_file():
                return file
        what = f"{folder} does not exist" if not folder.exists() else f"no {self.data.files[0]} in {folder.absolute()}"
        raise DataError(f"{self.name}: {what}; get {self.data.origin}, and name it with --data")

    def check(self, path: Path, allow_changed: bool = False) -> str:
        """Reads the file.

        Args:
            allow_changed: go on with ids, or an order, that are not those of the hash.

        Returns:
            What differs from the row's data set, in words; empty where nothing does.

        Raises:
            DataError: if it is not the row's data set, saying which it is.
        """
        config, wanted = self.config(path), self.data
        try:
            data = experiment.read(config)
        except DataError as error:
            raise DataError(f"{error}; {self.name} needs {wanted.title}: get {wanted.origin}") from error
        if wanted.matches(data):
            if data.data_hash == wanted.hash:
                return ""
            differs = (
                f"{path} has the counts of {wanted.title}, but other ids or another order (hash {data.data_hash[:12]}, "
                f"expected {wanted.hash[:12]})"
            )
            if allow_changed:
                return differs
            raise DataError(f"{differs}: get {wanted.origin}, or go on with --allow-changed-data")
        raise DataError(
            f"{path}{_variant(path, data, config.reader.file_format)}; {self.name} needs {wanted.title}: "
            f"{_size(wanted.users, wanted.items, wanted.events)}; scores of the two do not compare. Get {wanted.origin}"
        )

    def refuse_changed(self, config: Config) -> None:
        """Sees to it that what is in the run folder was trained for as long as ``config`` says. Resuming takes other
        epochs and another patience, but the score is then none of this configuration.

        Raises:
            CheckpointError: naming what differs.
        """
        (entry,) = config.models
        run = config.run_path(entry.name)
        if not (run / "checkpoints" / "last.safetensors").is_file():
            return
        last = RunFolder.existing(run).last_path
        metadata = checkpoint.load(last, metadata_only=True)[1]
        options = asdict(experiment.options_of(config, entry))
        stored = metadata.get("options", {}) | {"epochs": metadata.get("params", {}).get("epochs")}
        wanted = {"epochs": entry.params["epochs"]}
        wanted |= {key: options[key] for key in ("patience", "min_delta", "grace_period")}
        try:
            checkpoint.check_same(last, f"configuration than {self.name} now has", stored, wanted)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; --overwrite trains it again, --out takes another folder") from error

    def prepare(
        self, data: Path | None, seeds: int, out: Path, overwrite: bool, allow_changed: bool
    ) -> tuple[list[Config], str]:
        """The configurations of the seeds 1 to ``seeds``, and what ``check`` gave, once all is seen to be in order.

        Raises:
            CheckpointError, DataError: see ``find``, ``check`` and ``refuse_changed``.
        """
        path = self.find(data)
        changed = self.check(path, allow_changed)
        configs = [self.config(path, seed, out) for seed in range(1, seeds + 1)]
        for config in [] if overwrite else configs:
            self.refuse_changed(config)
        return configs, changed

    def report(self, outcomes: Sequence[Outcome], changed: str = "") -> dict[str, Any]:
        """Published and reached scores of finished runs, one a seed; mean and standard deviation over the seeds, and
        the difference from each published score, absolute and relative. ``changed``: what ``check`` gave."""
        runs = []
        for outcome in outcomes:
            assert outcome.evaluation is not None
            result = outcome.result
            validation = sum(line.get("validation_seconds", 0.0) for line in result.history)
            runs.append(
                {
                    "seed": outcome.evaluation.protocol["training_seed"],
                    "run": str(outcome.run.path),
                    **{name: outcome.evaluation.metrics[name] for name in METRICS.values()},
                    "validation": {"metric": result.metric, "value": result.best_value, "epoch": result.best_epoch},
                    "epochs": result.epochs,
                    "seconds": result.seconds + validation,
                }
            )
        mean = {name: statistics.fmean(run[name] for run in runs) for name in METRICS.values()}
        spread = {name: statistics.stdev(run[name] for run in runs) for name in mean} if len(runs) > 1 else None
        comparisons = []
        for each in self.published:
            difference = {name: mean[name] - each[key] for key, name in METRICS.items()}
            relative = {name: difference[name] / each[key] for key, name in METRICS.items()}
            comparisons.append({**_renamed(each), "difference": difference, "relative": relative})
        return {
            **self.to_dict(),
            **({"changed_data": changed} if changed else {}),
            "published": comparisons,
            "reached": {"mean": mean, "spread": spread, "seeds": len(runs)},
            "seconds": sum(run["seconds"] for run in runs),
            "runs": runs,
        }

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON."""
        entry = self.config().models[0]
        return {
            "name": self.name,
            "config": str(self.path),
            "model": entry.name,
            "hyperparameters": entry.params,
            "data": asdict(self.data),
            "protocol": self.protocol,
            "published": [_renamed(each) for each in self.published],
        }


def _variant(path: Path, data: Interactions, file_format: str) -> str:
    """Which data set a file is, also one that another row's format reads; else its counts."""
    read = [data]
    with contextlib.suppress(DataError):
        read.append(read_interactions(path))
    for found in read:
        for each in table()[0].values():
            if each.matches(found):
                return f" is {each.title}: {_size(found.n_users, found.n_items, found.n_events)}"
    how = "" if file_format == "auto" else f", read as {file_format},"
    return f"{how} has {_size(data.n_users, data.n_items, data.n_events)}"


def _size(users: int, items: int, events: int) -> str:
    return f"{users:,} users, {items:,} items, {events:,} events"


def _renamed(published: dict[str, Any]) -> dict[str, Any]:
    return {METRICS.get(key, key): value for key, value in published.items()}


def table() -> tuple[dict[str, DataSet], dict[str, Row]]:
    """Data sets and rows by name."""
    tree = yaml.safe_load(FOLDER.with_suffix(".yaml").read_text(encoding="utf-8"))
    sets = {name: DataSet(**entry) for name, entry in tree["data"].items()}
    return sets, {name: Row(name, **{**entry, "data": sets[entry["data"]]}) for name, entry in tree["rows"].items()}


def row(name: str) -> Row:
    """The row of a name.

    Raises:
        ConfigError: if there is none, naming the nearest.
    """
    rows = table()[1]
    if name not in rows:
        raise ConfigError(f"there is no row {name!r}: {did_you_mean(name, rows)}; `fastseq reproduce` lists them")
    return rows[name]
