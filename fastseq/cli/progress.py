"""What a long command prints on stderr: bars on a terminal; of a training lines in a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import rich.progress
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from ..training import Callback, Progress, Start
from .console import say, stderr


class Lines(Callback):
    """A line an epoch."""

    def __init__(self, name: str, metric: str) -> None:
        self.name, self.metric, self.epochs = name, metric, 0

    def on_start(self, start: Start) -> None:
        self.epochs = start.epochs

    def on_epoch(self, line: dict[str, Any]) -> None:
        value = line.get("validation", {}).get(self.metric)
        shown = "" if value is None else f", {self.metric} {value:.4f}"
        say(
            f"{self.name}: epoch {line['epoch']}/{self.epochs}, loss {line['loss']:.4f}{shown}, "
            f"{line['targets_per_second']:,.0f} targets/s"
        )


class Bar(Callback):
    """A bar among others, with epoch, loss, speed, metric and time left."""

    def __init__(self, bars: rich.progress.Progress, name: str, metric: str) -> None:
        self.bars, self.name, self.metric = bars, name, metric

    def on_start(self, start: Start) -> None:
        self.task = self.bars.add_task(
            self.name, total=start.total_steps, completed=start.step, epoch="", loss=0.0, speed=0.0, metric=""
        )

    def on_steps(self, progress: Progress) -> None:
        self.bars.update(
            self.task,
            completed=progress.step,
            epoch=f"epoch {progress.epoch}/{progress.epochs}",
            loss=progress.loss,
            speed=progress.targets_per_second,
        )

    def on_epoch(self, line: dict[str, Any]) -> None:
        if self.metric in (metrics := line.get("validation", {})):
            self.bars.update(self.task, metric=f"{self.metric} {metrics[self.metric]:.4f}")


@contextmanager
def progress_of(metric: str, quiet: bool) -> Iterator[Callable[[str], Sequence[Callback]]]:
    """What prints the training of a model of a name, with the validation metric."""
    if quiet:
        yield lambda name: ()
    elif not stderr.is_terminal:
        yield lambda name: (Lines(name, metric),)
    else:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[epoch]}", markup=False),
            TextColumn("loss {task.fields[loss]:.4f}", markup=False),
            TextColumn("{task.fields[speed]:,.0f} targets/s", markup=False),
            TextColumn("{task.fields[metric]}", markup=False),
            TimeRemainingColumn(),
        )
        with rich.progress.Progress(*columns, console=stderr) as bars:
            yield lambda name: (Bar(bars, name, metric),)


@contextmanager
def counting(what: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """On a terminal a bar; it is told how many of ``total`` are done."""
    if quiet or not stderr.is_terminal:
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with rich.progress.Progress(*columns, console=stderr) as bars:
        task = bars.add_task(what, total=total)
        yield lambda done: bars.update(task, completed=done)
