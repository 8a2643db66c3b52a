"""Published scores, reached on the user's own data: what `fastseq reproduce` does, without a word printed.

A row is a configuration of published/, which `fastseq train` takes too, and an entry of published.yaml: the data set
it is for, by counts and hash, and the scores that were published for it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ..data.interactions import Interactions
from ..errors import ConfigError, DataError, did_you_mean
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

    def config(self, path: Path | None = None, seed: int | None = None, out: Path | None = None) -> Config:
        """The configuration, with another file, seed and place of the run folder (``out``/name/seed-N/model)."""
        config = load_config(FOLDER / f"{self.name}.yaml")
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

    def check(self, path: Path, allow_changed: bool = False) -> None:
        """Reads the file.

        Args:
            allow_changed: go on with ids, or an order, that are not those of the hash.

        Raises:
            DataError: if it is not the row's data set, saying which it is.
        """
        data = experiment.read(self.config(path))
        wanted = self.data
        if wanted.matches(data):
            if data.data_hash == wanted.hash or allow_changed:
                return
            raise DataError(
                f"{path} has the counts of {wanted.title}, but other ids or another order (hash {data.data_hash[:12]}, "
                f"expected {wanted.hash[:12]}): get {wanted.origin}, or go on with --allow-changed-data"
            )
        found = next((f"is {each.title}: " for each in table()[0].values() if each.matches(data)), "has ")
        raise DataError(
            f"{path} {found}{_size(data.n_users, data.n_items, data.n_events)}; {self.name} needs {wanted.title}: "
            f"{_size(wanted.users, wanted.items, wanted.events)}; scores of the two do not compare. Get {wanted.origin}"
        )

    def report(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Published and reached scores of finished runs, one a seed; mean and standard deviation over the seeds, and
        the difference from each published score, absolute and relative."""
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
            "config": str(FOLDER / f"{self.name}.yaml"),
            "model": entry.name,
            "hyperparameters": entry.params,
            "data": asdict(self.data),
            "protocol": self.protocol,
            "published": [_renamed(each) for each in self.published],
        }


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
