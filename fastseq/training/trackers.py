"""Trackers of experiments: TensorBoard, MLflow, Weights & Biases. Each needs the extra of its name, and no other."""

from __future__ import annotations

import importlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastseq.errors import ConfigError

from .callbacks import Callback, End, Progress, Start
from .evaluation import Evaluation
from .run import RunFolder

EPOCH = ("epoch", "loss", "seconds", "targets_per_second", "validation_seconds")  # of an epoch's line


def _imported(module: str, tracker: str, extra: str) -> Any:
    """A module of a tracker's package.

    Raises:
        ImportError: naming the package and the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{tracker} needs the package {extra} ({error}): pip install 'fastseq-rec[{extra}]', or leave it out"
        ) from error


class Tracker(Callback, ABC):
    """Writes a run to a tracker, under names that all trackers share: ``train/loss`` and ``train/learning_rate`` of
    steps, ``epoch/loss``, ``epoch/targets_per_second`` …, ``validation/NDCG@10`` and the like, and ``test/NDCG@10``
    where the training ends in a test. The x-axis is the number of optimizer steps.

    For another tracker override ``open``, ``log`` and ``close``.

    Args:
        every_steps: training losses and learning rates of every n-th step are written; 1: of all.

    Attributes:
        place: in words, where the tracker keeps its runs. By it the run folder keeps the id of its run.

    Raises:
        ImportError: if the tracker's package is missing, naming the extra that brings it.
        ConfigError: if ``every_steps`` is not positive.
    """

    place: str = ""

    def __init__(self, every_steps: int = 10) -> None:
        if isinstance(every_steps, bool) or not isinstance(every_steps, int) or every_steps < 1:
            raise ConfigError(f"every_steps is {every_steps!r}, expected an integer >= 1")
        self.every_steps = every_steps
        self._step = 0  # of which was last written

    @abstractmethod
    def open(self, start: Start, identity: str | None) -> str | None:
        """Begins a run, or goes on in that of ``identity``, which an earlier call for this run folder has returned.

        Returns:
            What goes on from it takes: an id, or None where none is needed.
        """

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers by name."""

    @abstractmethod
    def close(self, end: End) -> None:
        """Ends the run."""

    def on_start(self, start: Start) -> None:
        self._step = start.step
        kept = None if start.run is None else start.run.read_trackers().get(self.place)
        identity = self.open(start, kept)
        if start.run is not None and identity is not None and identity != kept:
            start.run.write_tracker(self.place, identity)

    def on_steps(self, progress: Progress) -> None:
        for step in progress.steps:
            if step.number % self.every_steps == 0:
                self.log({"train/loss": step.loss, "train/learning_rate": step.learning_rate}, step.number)
        self._step = progress.step

    def on_validation(self, step: int, evaluation: Evaluation) -> None:
        self.log({f"validation/{name}": value for name, value in evaluation.metrics.items()}, step)

    def on_epoch(self, line: dict[str, Any]) -> None:
        self.log({f"epoch/{name}": line[name] for name in EPOCH if name in line}, line["step"])

    def on_end(self, end: End) -> None:
        try:
            if end.evaluation is not None:
                self.log({f"test/{name}": value for name, value in end.evaluation.metrics.items()}, self._step)
        finally:
            self.close(end)


class TensorBoard(Tracker):
    """TensorBoard's event files; ``tensorboard --logdir FOLDER`` shows those of all runs below a folder.

    Args:
        directory: where they go, of this run alone; None: ``tensorboard`` in the run folder.
        every_steps: see Tracker.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, every_steps: int = 10) -> None:
        super().__init__(every_steps)
        self.directory = None if directory is None else Path(directory)
        self._new = _imported("torch.utils.tensorboard", "TensorBoard", "tensorboard").SummaryWriter

    def open(self, start: Start, identity: str | None) -> None:
        directory = self.directory
        if directory is None:
            if start.run is None:
                raise ConfigError("there is no run folder: pass TensorBoard a directory, or Trainer a run_dir")
            directory = start.run.tensorboard_path
        # TensorBoard hides what was written of later steps: they are taken again.
        self._writer = self._new(str(directory), purge_step=start.step + 1 if start.step else 0, flush_secs=20)
        self._settings = start.settings()
        rows = [f"| {name} | {value} |" for name, value in self._settings.items()]
        self._writer.add_text("settings", "\n".join(["| name | value |", "|---|---|", *rows]), start.step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, end: End) -> None:
        try:
            if end.result is not None:  # for its table of hyperparameters, with what the run reached
                reached = {} if end.result.best_value is None else {f"best/{end.result.metric}": end.result.best_value}
                tested = {} if end.evaluation is None else end.evaluation.metrics
                reached |= {f"hparams/{name}": value for name, value in tested.items()}
                plain = {name: x if isinstance(x, int | float | str) else str(x) for name, x in self._settings.items()}
                self._writer.add_hparams(plain, reached, run_name=".", global_step=self._step)
        finally:
            self._writer.close()


class MLflow(Tracker):
    """A run of MLflow's. It holds no active run: what else the program tells MLflow is not touched. ``@`` in the names
    of metrics is ``_at_``, since MLflow has no other way. A run that goes on keeps the parameters that it began with.

    Args:
        experiment_name: made if there is none of the name.
        tracking_uri, registry_uri: of the server or the database; None: MLflow's own, by MLFLOW_TRACKING_URI.
        tags: of the run.
        save_artifacts: at the end upload configuration, curve, evaluation and best checkpoint of the run folder.
        every_steps: see Tracker.
    """

    SECONDS, ROWS = 5.0, 900  # how long numbers wait to be sent together, and how many: MLflow takes 1,000

    def __init__(
        self,
        experiment_name: str = "fastseq",
        tracking_uri: str | None = None,
        registry_uri: str | None = None,
        tags: Mapping[str, str] | None = None,
        save_artifacts: bool = False,
        every_steps: int = 10,
    ) -> None:
        super().__init__(every_steps)
        self.experiment_name, self.tags, self.save_artifacts = experiment_name, dict(tags or {}), save_artifacts
        self._mlflow = _imported("mlflow", "MLflow", "mlflow")
        self._where = {"tracking_uri": tracking_uri, "registry_uri": registry_uri}
        self.place = f"mlflow {tracking_uri or self._mlflow.get_tracking_uri()} {experiment_name}"

    def open(self, start: Start, identity: str | None) -> str:
        entities = self._mlflow.entities
        self._client = self._mlflow.MlflowClient(**self._where)
        self._run, self._sent = start.run, time.monotonic()
        self._waiting: list[Any] = []
        if identity is not None:
            self._client.update_run(identity, status="RUNNING")
            self._id = identity
            return identity
        known = self._client.get_experiment_by_name(self.experiment_name)
        experiment = self._client.create_experiment(self.experiment_name) if known is None else known.experiment_id
        self._id = str(self._client.create_run(experiment, tags=self.tags, run_name=start.name).info.run_id)
        params = [entities.Param(name, str(value)[:500]) for name, value in start.settings().items()]
        for first in range(0, len(params), 100):  # no more at a time
            self._client.log_batch(self._id, params=params[first : first + 100])
        return self._id

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        for name, value in values.items():
            self._waiting.append(self._mlflow.entities.Metric(name.replace("@", "_at_"), float(value), now, step))
        if len(self._waiting) >= self.ROWS or time.monotonic() - self._sent > self.SECONDS:
            self._send()

    def _send(self) -> None:
        while self._waiting:
            self._client.log_batch(self._id, metrics=self._waiting[: self.ROWS])
            del self._waiting[: self.ROWS]
        self._sent = time.monotonic()

    def close(self, end: End) -> None:
        interrupted = end.result is not None and end.result.stopped == "interrupted"
        status = "FAILED" if end.result is None else "KILLED" if interrupted else "FINISHED"
        try:
            self._send()
            if self.save_artifacts and self._run is not None:
                for path in _artifacts(self._run):
                    self._client.log_artifact(self._id, str(path))
        finally:
            self._client.set_terminated(self._id, status)


class WandB(Tracker):
    """A run of Weights & Biases'. ``mode="offline"`` needs no account and no network: the run is written to the folder
    ``wandb`` in the run folder, and ``wandb sync`` uploads it.

    Args:
        project, team, group: where the run belongs; team None: the account's own.
        mode: "online", "offline" or "disabled"; None: by WANDB_MODE, else online.
        api_key: None: that of ``wandb login`` or WANDB_API_KEY.
        excludes: names of settings and metrics not to write.
        upload_checkpoints: at the end upload the best checkpoint as an artifact.
        every_steps: see Tracker.
    """

    def __init__(
        self,
        project: str = "fastseq",
        team: str | None = None,
        group: str | None = None,
        mode: str | None = None,
        api_key: str | None = None,
        excludes: Sequence[str] = (),
        upload_checkpoints: bool = False,
        every_steps: int = 10,
    ) -> None:
        super().__init__(every_steps)
        if mode not in (None, "online", "offline", "disabled"):
            raise ConfigError(f"mode is {mode!r}, expected 'online', 'offline' or 'disabled'")
        self.project, self.team, self.group, self.mode = project, team, group, mode
        self.excludes, self.upload_checkpoints, self._key = set(excludes), upload_checkpoints, api_key
        self._wandb = _imported("wandb", "Weights & Biases", "wandb")
        self.place = f"wandb {team or ''}/{project}"

    def open(self, start: Start, identity: str | None) -> str:
        self._folder = start.run
        key = {} if self._key is None else {"api_key": self._key}
        self._run = self._wandb.init(
            project=self.project,
            entity=self.team,
            group=self.group,
            mode=self.mode,
            id=identity,
            resume="allow",  # a run of this id goes on, and one that is not there begins
            name=start.name,
            dir=None if start.run is None else str(start.run.path),
            config={name: value for name, value in start.settings().items() if name not in self.excludes},
            reinit="create_new",  # beside a run that the program may have of its own
            settings=self._wandb.Settings(console="off", **key),
        )
        # Steps are a column: W&B's own numbers must rise, and a run that goes on takes some steps again.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        return str(self._run.id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({"step": step} | {name: x for name, x in values.items() if name not in self.excludes})

    def close(self, end: End) -> None:
        try:
            if self.upload_checkpoints and end.result is not None and self._folder is not None:
                artifact = self._wandb.Artifact(f"model-{self._run.id}", type="model")
                for path in _checkpoints(self._folder):
                    artifact.add_file(str(path))
                self._run.log_artifact(artifact)
        finally:
            interrupted = end.result is not None and end.result.stopped == "interrupted"
            self._run.finish(exit_code=1 if end.result is None else 130 if interrupted else 0)


def _checkpoints(run: RunFolder) -> list[Path]:
    """The files of the best one: of divided tables there are several."""
    return sorted(run.best_path.parent.glob(f"{run.best_path.stem}*{run.best_path.suffix}"))


def _artifacts(run: RunFolder) -> list[Path]:
    """What is worth keeping of a run folder, as far as it is there."""
    files = (run.config_path, run.metrics_path, run.curve_path, run.evaluation_path, run.ids_path)
    return [*(path for path in files if path.is_file()), *_checkpoints(run)]
