"""The training loop: the only one there is. The command line, Python and the benchmarks call it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastseq import _version
from fastseq.data.batch import JaggedBatch
from fastseq.data.split import Split
from fastseq.devices import device_name, memory_named, peak_memory_mb
from fastseq.errors import ConfigError, TrainingError
from fastseq.models.base import SequentialRecommender
from fastseq.models.recommend import Catalogue, check_catalogue, has_replaced_method
from fastseq.optim import RowAdam

from . import building
from . import state as states
from .callbacks import Callback, Callbacks, End, Event, Progress, Start, Step
from .curve import draw_curve
from .distributed import Ranks, distributed_loss
from .evaluation import Evaluation, evaluate
from .metrics import LIST_METRICS, NOVELTY_METRICS, parse_metric
from .options import TrainingOptions, learning_rate_factor
from .plan import Foretold, Plan
from .precision import say_if_fp32
from .result import TrainResult
from .rows import why_dense
from .run import RunFolder
from .signals import StopRequest
from .state import StopReason, TrainState
from .steps import RATES, EagerSteps, StaticSteps, Steps, Work
from .watch import failing_together

# A GPU of so many multiprocessors or more is called large, and idles with fewer targets a step: an estimate.
LARGE_GPU, TARGETS_OF_LARGE_GPU = 100, 16_384


class Trainer:
    """Trains ``model`` on the training part of ``split``.

    Args:
        model: on the device to train on. Its hyperparameters say batch size, learning rate and the like. One without
            a catalogue gets the data's, so that it recommends in raw ids.
        split: data of the model's catalogue.
        options: everything else.
        run_dir: where checkpoints, metrics and the curve go, a path or a ``RunFolder``; None: nowhere, and nothing
            can be resumed.
        callbacks: told of start, steps, validations, epochs and end, in rank 0, one after the other; trackers are such.
        resume: go on from ``run_dir``'s last checkpoint, or from the beginning if it has none yet. The weights then
            are bit for bit those of a run that was never stopped, on the same machine and versions.
        overwrite: delete what an earlier run left in ``run_dir``.
        plan: what the run is expected to take; the result says it again, beside what it took.

    Attributes:
        run: the ``RunFolder``, or None.
        loader, optimizer, scheduler, epochs, total_steps: what is trained with, and for how long. The scheduler is
            None where the schedule is by step.
        foretold: the speed by the first seconds.
        state: the ``TrainState``: steps taken, the best epoch so far and the like. Read it, do not write to it.

    Raises:
        ConfigError: if the options do not fit the split, or processes that train together were given different data,
            models or options, naming what differs.
        DataError: if there is no negative to draw for some user, naming the user; or if the model was built for other
            users or items than the data's.
        CheckpointError: if ``run_dir`` is in use, or what is there was trained from another model, data or options.
    """

    @failing_together()
    def __init__(
        self,
        model: SequentialRecommender,
        split: Split,
        options: TrainingOptions | None = None,
        run_dir: str | os.PathLike[str] | RunFolder | None = None,
        callbacks: Sequence[Callback] = (),
        *,
        resume: bool = False,
        overwrite: bool = False,
        plan: Plan | None = None,
    ) -> None:
        self.plan, self.foretold = plan, Foretold()
        self.model, self.split, self.options = model, split, options or TrainingOptions()
        self.device = next(model.parameters()).device
        self.ranks = Ranks.join(self.device)
        model.settle()  # after a training that was broken off
        self.callbacks = Callbacks(callbacks if self.ranks.is_first else ())
        data = split.interactions
        check_catalogue(model, data, users=True)
        if model.catalogue is None:
            model.catalogue = Catalogue(data.item_ids, data.user_ids)
        self.metric = building.validation_metric(self.options, split)
        shards = model.shards
        if shards is not None and (shards.rank, shards.world_size) != (self.ranks.rank, self.ranks.world_size):
            raise ConfigError(
                f"the model holds part {shards.rank} of {shards.world_size} of its tables, but this is process "
                f"{self.ranks.rank} of {self.ranks.world_size}; build it with shards=Shards({self.ranks.rank}, "
                f"{self.ranks.world_size})"
            )
        self.epochs = self.options.epochs or model.epochs
        self.loader = building.loader(model, split, self.options, self.ranks, self.device)
        self.total_steps = self.epochs * len(self.loader)
        if not self.total_steps:
            raise ConfigError("the training part has no targets: no user has 2 training events")
        self.optimizer, self.scheduler = building.optimizer(model, self.options, rows=self._why_dense is None)
        self._why_eager()  # an execution that is not served is refused before anything is trained
        self._base_rates: list[float] = [group["lr"] for group in self.optimizer.param_groups]
        self.state = TrainState()
        self._history: list[dict[str, Any]] = []
        self._best_weights: dict[str, Tensor] = {}  # where there is no folder to keep them in
        # Targets of all ranks, of this one, learning rate: steps whose losses are not read.
        self._pending: list[tuple[int, int, float]] = []
        self._mark = time.perf_counter()  # up to when the time of training steps is counted
        self._flags: Callable[[], Tensor] | None = None
        self._due: Callable[[], Tensor] | None = None
        self._agree(resume, run_dir is not None)
        if run_dir is None or isinstance(run_dir, RunFolder):
            self.run = run_dir
        else:
            self.run = RunFolder.open(run_dir, self.ranks, resume=resume, overwrite=overwrite)
        if self.run is not None:
            self._open_run(self.run, resume)

    @failing_together()
    def fit(self, test: Callable[[TrainResult], Evaluation | None] | None = None) -> TrainResult:
        """Trains to the end, or until patience, time or a signal stops it.

        Args:
            test: called in every process when training is over; the callbacks' ``on_end`` gets what it returns.

        On SIGINT (Ctrl-C) or SIGTERM the current step is finished and ``last`` saved; the result then says
        "interrupted" and how to resume. A second signal acts at once.

        Raises:
            TrainingError: if the loss is not finite, naming step and learning rate; if a callback failed, naming it; or
                if another process that trains with this one failed, died or froze, naming it.
            DeviceMemoryError: if a GPU's memory is full, naming what was running.
            CheckpointError: if a checkpoint cannot be written; what was saved before is intact.
        """
        try:
            untrained = int((~self.split.trained_items).sum())
            if untrained and self.ranks.is_first:
                warnings.warn(
                    f"{untrained} of {self.model.n_items} items have no training event and are recommended all the "
                    "same; Split.warm() (in a configuration: splitter.cold: drop) leaves them out",
                    stacklevel=3,
                )
            if self.ranks.is_first:
                say_if_fp32(self.options.precision, self.device)
                self._say_if_small()
            self._tell("on_start", self._start())
            step = f"training at a batch_size of {self.model.batch_size} targets"
            with memory_named(self.device, step, "lower batch_size or max_seq_len", self._kept):
                result = self._fit()
            evaluation = None if test is None else test(result)
            self.callbacks.end(End(result, evaluation))
            return result
        except BaseException as error:
            self.callbacks.end(End(error=error))
            raise
        finally:
            if self.run is not None:
                self.run.unlock()
            # The steps held it; who trains on by other means gets the mask that would come next.
            self.model.set_rng(self.options.seed, self.state.step * self.ranks.world_size + self.ranks.rank)

    def _say_if_small(self) -> None:
        """Warns where the steps are likely too small to fill the GPU."""
        targets = self.model.batch_size // self.ranks.world_size
        if self.device.type != "cuda" or targets >= TARGETS_OF_LARGE_GPU:
            return
        if torch.cuda.get_device_properties(self.device).multi_processor_count >= LARGE_GPU:
            warnings.warn(
                f"a step of {targets} targets leaves most of {device_name(self.device)} idle: from about "
                f"{TARGETS_OF_LARGE_GPU} on it is busy; raise batch_size and learning_rate together (docs/gpu.md)",
                stacklevel=4,
            )

    def _say_if_changed(self) -> None:
        """Warns where steps are not taken as those before: with ``auto``, free memory may decide."""
        state, why = self.state, self._why_eager()
        before, state.execution = state.execution, "graph" if isinstance(self.steps, StaticSteps) else "eager"
        if before not in (None, state.execution) and self.ranks.is_first:
            remedy = f"here {why}" if before == "graph" else "execution: eager goes on as before"
            warnings.warn(
                f"execution was {before} and is {state.execution}: from here on the weights are not bit for bit those "
                f"of a run that was never stopped; {remedy}",
                stacklevel=5,
            )

    def _fit(self) -> TrainResult:
        state = self.state
        self._before, self._flags, self._due = (state.targets, state.seconds), None, None
        self._say_if_changed()
        with StopRequest() as request:
            while state.stopped is None and state.epoch < self.epochs:
                self.model.train()
                reason = self._run_epoch(request)
                if reason is not None:
                    return self._broken_off(reason)
                self._finish_epoch()
                reason = self._stop_reason(request, at_once=True)
                if reason == "interrupted":  # during the validation: the last epoch's has no step after it
                    return self._broken_off(reason)
        self.model.eval()
        self._restore_best()
        reason = state.stopped or "finished"
        message = f"stopped after epoch {state.epoch}: all epochs done"
        if reason == "patience":
            message = f"stopped after epoch {state.epoch}: no improvement in {state.bad_validations} validations"
        if state.best_value is not None:
            message += f"; best {self.metric} {state.best_value:.4f}, epoch {state.best_epoch}"
        return self._result(reason, message)

    # Steps.

    def _run_epoch(self, request: StopRequest) -> StopReason | None:
        """The rest of this epoch's steps; why they were broken off, or None."""
        state, options = self.state, self.options
        reason: StopReason | None = None
        reported = saved = self._mark = time.perf_counter()
        with contextlib.closing(self.steps.of_epoch(state.epoch, state.batch)) as epoch:
            for work in epoch:
                self._step(work)
                now = self._count_seconds()
                self.foretold.see(state.targets - self._before[0], state.seconds - self._before[1])
                if now - reported >= options.progress_every_seconds:
                    self._read_losses()
                    self._report()
                    reported = now
                reason = self._stop_reason(request)
                if reason is not None:
                    break
                interval = options.checkpoint_every_seconds
                if self._is_due(interval is not None and now - saved >= interval):
                    self._save_last()
                    saved = self._mark = time.perf_counter()
        self._read_losses()
        return reason

    def _count_seconds(self) -> float:
        """Adds the time since it was last counted to that of training steps, and returns the clock."""
        now = time.perf_counter()
        self.state.seconds += now - self._mark
        self._mark = now
        return now

    def _step(self, work: Work) -> None:
        """One optimizer step."""
        state, options = self.state, self.options
        if self.scheduler is None:
            factor = learning_rate_factor(options.schedule, state.step, self.total_steps, options.warmup_steps)
            for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
                group["lr"] = rate * factor
        self.steps.take(work)
        self._pending.append((work.n_targets_global, work.n_targets, self._rate()))
        state.batch += 1
        state.step += 1
        state.targets += work.n_targets_global

    def _read_losses(self) -> None:
        """Adds the losses of the steps since the last call to the epoch's: waits until the device has taken them, and
        counts that time as theirs."""
        if not self._pending:
            return
        state, losses = self.state, self.steps.losses()
        pending, self._pending = self._pending, []
        self._count_seconds()
        for number, (share, (all_targets, targets, rate)) in enumerate(
            zip(losses, pending, strict=True), state.step - len(losses) + 1
        ):
            if not math.isfinite(share):
                self._raise_diverged(f"the loss is {share}", number)
            if targets:
                state.epoch_loss += share * all_targets
                state.epoch_targets += targets
                state.last_loss = share * all_targets / targets
                if state.first_loss is None:
                    state.first_loss = state.last_loss
                if self.callbacks.heard:
                    self.callbacks.steps.append(Step(number, state.last_loss, rate))

    def _raise_diverged(self, what: str, step: int) -> None:
        late = "" if step == self.state.step else f", seen after step {self.state.step}"
        raise TrainingError(
            f"{what} at step {step} (epoch {self.state.epoch + 1}{late}), learning rate {self._rate():g}: training has "
            f"diverged. Lower learning_rate or set gradient_clip (in Python: clip_norm).{self._kept()}"
        )

    def _kept(self) -> str:
        """What a run that fails leaves behind, as the last sentence of an error."""
        if self.run is None or not self.run.last_path.exists():
            return ""
        return f" The checkpoints in {self.run.path} are from before."

    def _rate(self) -> float:
        """The learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def _stop_reason(self, request: StopRequest, at_once: bool = False) -> StopReason | None:
        """Why to stop now. Ranks stop after the same step, one after a rank found a reason (``at_once``: the same): the
        answer to each step's question is read at the next, so that none waits for the others."""
        limit = self.options.max_seconds
        spent = self.state.seconds - self._before[1]
        time_is_up = limit is not None and spent >= limit
        asked = request.signal is not None
        if self.ranks.world_size > 1:
            before = self._flags
            self._flags = self.ranks.summing(torch.tensor([time_is_up, asked], dtype=torch.int64))
            flags = (self._flags if at_once or before is None else before)().tolist()
            time_is_up, asked = flags[0] > 0, flags[1] > 0
            if asked or time_is_up:
                self._flags()  # no question is left open
        return "interrupted" if asked else "max_seconds" if time_is_up else None

    def _is_due(self, due: bool) -> bool:
        """Whether to save here: all ranks together, when the first of them has said so a step before."""
        if self.ranks.world_size == 1 or self.run is None:
            return due
        before, self._due = self._due, None
        if before is None or not (saves := bool(before())):
            self._due = self.ranks.summing(torch.tensor(int(due and self.ranks.is_first)))
            return False
        return saves

    # Epochs.

    def _finish_epoch(self) -> None:
        """Validates, writes the epoch's line and checkpoints, and moves on to the next epoch."""
        state, options = self.state, self.options
        epoch = state.epoch + 1
        if self.callbacks.steps:
            self._report()
        self.model.settle()
        total = self.ranks.sum(torch.tensor([state.epoch_loss, state.epoch_targets], dtype=torch.float64)).tolist()
        record: dict[str, Any] = {
            "epoch": epoch,
            "step": state.step,
            "targets": state.targets,
            "loss": total[0] / max(1.0, total[1]),
            "learning_rate": self._rate(),
            "seconds": state.seconds,
            "targets_per_second": self._speed(),
            "device": device_name(self.device),
        }
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(record["loss"])
        elif self.scheduler is not None:
            self.scheduler.step()
        last, evaluation = epoch == self.epochs, None
        if self.metric is not None and (last or epoch % options.validate_every == 0):
            evaluation = self.validate()
            record["validation"] = evaluation.metrics
            record["validation_seconds"] = evaluation.seconds
            if sample := evaluation.protocol.get("sample"):
                record["validation_sample"] = sample
            self._judge(epoch, evaluation[self.metric])
            if state.best_epoch == epoch:
                self._save_best(epoch, evaluation.metrics)
        elif self.metric is None and last:
            state.best_epoch = epoch
            self._save_best(epoch, {})
        self._history.append(record)
        if self._writes is not None:
            state.metrics_bytes = self._writes.append_metrics(record)
        state.epoch, state.batch, state.epoch_loss, state.epoch_targets = epoch, 0, 0.0, 0
        self._save_last()
        if evaluation is not None:
            self._tell("on_validation", state.step, evaluation)
        self._tell("on_epoch", dict(record))

    def validate(self) -> Evaluation:
        """Evaluates the model on the validation part, before the epoch is judged. A subclass may evaluate otherwise.

        Returns:
            Metrics, ``self.metric`` among them. With several processes, the same in each.
        """
        assert self.metric is not None
        options = self.options
        name, k = parse_metric(self.metric)
        return evaluate(
            self.model,
            self.split,
            "validation",
            ks=(k,),
            protocol=options.protocol,
            n_negatives=options.n_negatives,
            seed=options.evaluation_seed,
            mask_seen=options.mask_seen,
            history=options.history,
            batch_size=options.evaluation_batch_size,
            users=options.validation_users,
            coverage=name in LIST_METRICS,
            per_user=name in NOVELTY_METRICS,
            ranks=self.ranks,
        )

    def _judge(self, epoch: int, value: float) -> None:
        """Whether this epoch is the best so far, and whether patience is at its end."""
        state, options = self.state, self.options
        if state.best_value is None or value > state.best_value + options.min_delta:
            state.best_epoch, state.best_value, state.bad_validations = epoch, value, 0
            return
        if epoch > options.grace_period:
            state.bad_validations += 1
        if options.patience is not None and state.bad_validations >= options.patience:
            state.stopped = "patience"

    # What is kept.

    @property
    def _writes(self) -> RunFolder | None:
        """The run folder, in the one process that writes to it."""
        return self.run if self.ranks.is_first else None

    @property
    def _saves(self) -> RunFolder | None:
        """The run folder, in the processes that write checkpoints: in all, where each has a part of the tables."""
        return self._writes if self.model.shards is None else self.run

    def _agree(self, resume: bool, keeps: bool) -> None:
        """Raises ConfigError, in all processes, where they were not started to train the same."""
        if self.ranks.world_size == 1:
            return
        model, device = self.model, self.device.type
        said: dict[str, Any] = {
            "fastseq": _version.__version__,
            "seed of the model": model.seed,
            "device": device,
            "tables": "replicated" if model.shards is None else "sharded",
            "resume": resume,
            "run_dir": "given" if keeps else "None",
        }
        said |= {"model": type(model).__name__, "updates": "dense" if self._why_dense else "rows"}
        groups = {"params": model.get_params(), "options": asdict(self.options), "split": self.split.describe()}
        said |= {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}
        self.ranks.agree(said)

    def _open_run(self, run: RunFolder, resume: bool) -> None:
        if resume and run.last_path.exists():
            held = self.model, self.optimizer, self.scheduler
            self.state = states.load_last(run.last_path, *held, self.split, self.options, self.ranks.world_size)
            state, patience = self.state, self.options.patience
            if state.stopped == "patience" and (patience is None or state.bad_validations < patience):
                state.stopped = None
            if not self.ranks.is_first:  # what is saved are all ranks' losses of this epoch
                state.epoch_loss, state.epoch_targets = 0.0, 0
        if self.ranks.is_first:
            run.truncate_metrics(self.state.metrics_bytes)
            run.write_ids(self.split.interactions.user_ids, self.split.interactions.item_ids)
        self.ranks.agree({"the step to resume from": self.state.step})  # also waits for the first
        self._history = run.read_metrics()

    def _save_last(self) -> None:
        if self.run is None:
            return
        self._read_losses()
        state = self.state
        total = self.ranks.sum(torch.tensor([state.epoch_loss, state.epoch_targets], dtype=torch.float64)).tolist()
        if self._saves is None:
            return
        for name, parameter in self.model.named_parameters():
            if parameter.numel() and not all(x.isfinite() for x in parameter.aminmax()):  # no mask as large as a table
                self._raise_diverged(f"{name} is not finite", self.state.step)
        held = self.model, self.optimizer, self.scheduler
        state = dataclasses.replace(state, epoch_loss=total[0], epoch_targets=int(total[1]))
        states.save_last(self._saves.last_path, *held, self.split, self.options, state, self.ranks.world_size)

    def _save_best(self, epoch: int, metrics: dict[str, float]) -> None:
        if self._saves is not None:
            reached = {"epoch": epoch, "step": self.state.step, "metric": self.metric, "validation": metrics}
            states.save_best(self._saves.best_path, self.model, self.split, reached)
        elif self.run is None:
            self._best_weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def _restore_best(self) -> None:
        if self.run is not None:
            self.ranks.wait()  # until rank 0 has written it
            states.load_best(self.run.best_path, self.model, self.state.best_epoch)
        elif self._best_weights:
            self.model.load_state_dict(self._best_weights)

    def _broken_off(self, reason: StopReason) -> TrainResult:
        """Keeps what is there when an epoch is broken off."""
        self._read_losses()
        self._save_last()
        if self.callbacks.steps:
            self._report()
        self.model.eval()
        state = self.state
        why = "interrupted" if reason == "interrupted" else f"{self.options.max_seconds:g} seconds are over"
        how = (
            "nothing was saved, since there is no run folder"
            if self.run is None
            else f"saved in {self.run.path}; the same command with --resume (Trainer: resume=True) goes on from here"
        )
        epoch = min(state.epoch + 1, self.epochs)
        where = f"at step {state.step} of {self.total_steps}, epoch {epoch}"
        return self._result(reason, f"{why} {where}: {how}")

    # What is said.

    def _speed(self) -> float:
        targets, seconds = self._before
        return (self.state.targets - targets) / max(1e-9, self.state.seconds - seconds)

    def _tell(self, event: Event, *what: Any) -> None:
        """Tells the callbacks, whose time does not count as that of steps."""
        self.callbacks.tell(event, *what, kept=self._kept)
        self._mark = time.perf_counter()

    def _start(self) -> Start:
        return Start(
            model=type(self.model).__name__,
            params=self.model.get_params(),
            options=asdict(self.options),
            split=self.split.describe(),
            versions={"fastseq": _version.__version__, "torch": torch.__version__},
            device=device_name(self.device),
            epochs=self.epochs,
            total_steps=self.total_steps,
            step=self.state.step,
            run=self.run,
        )

    def _report(self) -> None:
        """Tells of the steps whose losses were read."""
        if not self.callbacks.heard:
            return
        state, steps = self.state, tuple(self.callbacks.steps)
        self.callbacks.steps.clear()
        per_step = state.targets / max(1, state.step)
        progress = Progress(
            epoch=state.epoch + 1,
            epochs=self.epochs,
            step=state.step,
            total_steps=self.total_steps,
            loss=state.epoch_loss / max(1, state.epoch_targets),
            targets_per_second=self._speed(),
            eta_seconds=(self.total_steps - state.step) * per_step / max(1e-9, self._speed()),
            steps=steps,
        )
        self._tell("on_steps", progress)

    def _result(self, stopped: StopReason, message: str) -> TrainResult:
        if self._writes is not None:
            draw_curve(self._history, self.metric, self._writes.curve_path)
        state, n_targets = self.state, self.loader.n_targets
        foretold, trained = self.foretold.speed, state.targets > self._before[0]
        return TrainResult(
            stopped=stopped,
            message=message,
            epochs=state.epoch,
            steps=state.step,
            targets=state.targets,
            seconds=state.seconds,
            targets_per_second=state.targets / max(1e-9, state.seconds),
            first_loss=state.first_loss,
            last_loss=state.last_loss,
            metric=self.metric,
            best_epoch=state.best_epoch,
            best_value=state.best_value,
            history=self._history,
            device=device_name(self.device),
            execution=self._execution(),
            updates="rows" if self._why_dense is None else f"dense: {self._why_dense}",
            peak_memory_mb=peak_memory_mb(self.device),
            planned_memory_mb=None if self.plan is None else self.plan.peak / 1e6,
            epoch_seconds=n_targets / self._speed() if trained else None,
            planned_epoch_seconds=foretold and n_targets / foretold,
        )

    # What is trained with.

    @cached_property
    def steps(self) -> Steps:
        """How steps are taken: of every ``fit``, so that a recording serves them all."""
        data = self.loader.resident
        if data is not None and self._why_eager() is None:
            return StaticSteps(self.model, self.optimizer, data, self.options)
        objective: Callable[[JaggedBatch], Tensor] = self.model.loss
        if self.ranks.world_size > 1:
            tables = self.model.tables().values() if isinstance(self.optimizer, RowAdam) else ()
            objective = distributed_loss(self.model, list(tables))
        return EagerSteps(self.model, self.optimizer, self.loader, self.options, objective, self.ranks)

    def _execution(self) -> str:
        """How steps are taken on a GPU and where batches are made, in words."""
        if self.device.type == "cpu":
            return "eager"
        if isinstance(self.steps, StaticSteps):
            how = "graph" if self.steps.recording else "eager: the step cannot be recorded"
        else:
            how = f"eager: {self._why_eager()}"
        return how if how.endswith(self.loader.residence) else f"{how}; {self.loader.residence}"

    def _why_eager(self) -> str | None:
        """Why steps are launched operation by operation; None where they are recorded as a CUDA graph.

        Raises:
            ConfigError: if the options ask for a graph that is not served.
        """
        execution, groups = self.options.execution, self.optimizer.param_groups
        if execution == "eager":
            return "execution is eager"
        reasons = {
            "the model is on the CPU": self.device.type != "cuda",
            "several processes train": self.ranks.world_size > 1,
            # What it does on the host a recording would leave out.
            f"{type(self.model).__name__} is not one of fastseq's own models as they are": execution == "auto"
            and (has_replaced_method(self.model) or not type(self.model).__module__.startswith("fastseq.")),
            "per_target is on": self.options.per_target,
            self.loader.residence: self.loader.resident is None,
            f"the optimizer is {type(self.optimizer).__name__}, not a fused Adam or AdamW": not all(
                group.get("fused") for group in groups
            ),
            f"there are {len(groups)} groups of parameters, over {RATES}": len(groups) > RATES,
        }
        why = next((reason for reason, holds in reasons.items() if holds), None)
        if why is not None and execution == "graph":
            raise ConfigError(f"execution is graph, but {why}; use auto or eager")
        return why

    @cached_property
    def _why_dense(self) -> str | None:
        """Why every step walks the whole item and user tables; None where it moves the rows that it touches."""
        return why_dense(self.model, self.options, warn=self.ranks.is_first)
