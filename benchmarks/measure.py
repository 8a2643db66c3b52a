"""What the scripts of whole runs share: sides in processes of their own, ratios, tables, the steps of a Trainer."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TAIL = 30  # lines shown of a process that failed


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call."""
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median and extremes."""
    parts = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in parts.items()}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Of each round's own pair: whatever slows a round slows both."""
    return spread([x / y for x, y in zip(ours, theirs, strict=True)], 3)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, its columns aligned for a screen."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def output(command: Sequence[Any], folder: Path | None = None, /, **environment: str) -> Iterator[str]:
    """Runs a process and gives each line that it prints. Where it fails, this process ends, too, with its last words.

    Args:
        command: program and arguments.
        folder: where to run it.
        environment: defaults of environment variables; those that are set already stay.
    """
    last: deque[str] = deque(maxlen=TAIL)
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            [str(word) for word in command], cwd=folder, env=environment | os.environ, text=True,
            stdout=subprocess.PIPE, stderr=errors,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                last.append(line)
                yield line
        if process.returncode:
            errors.seek(0)
            last += errors.readlines()[-TAIL:]
            sys.exit(f"{command[0]} failed, exit status {process.returncode}:\n{''.join(last)}")


def records(command: Sequence[Any], **environment: str) -> Iterator[dict[str, Any]]:
    """Runs a process and gives each JSON object that it prints on a line of its own."""
    return (json.loads(line) for line in output(command, **environment) if line.startswith("{"))


def train_throughput(model: str, data: Path, max_len: int, *options: Any) -> dict[str, Any]:
    """Figures of ``fastseq bench train`` in a fresh process."""
    command = [sys.executable, "-m", "fastseq.cli", "bench", "train", "--json", "--model", model]
    *_, figures = records([*command, "--data", data.resolve(), "--max-len", max_len, *options], PYTHONPATH=str(ROOT))
    return figures


def append(path: Path, record: dict[str, Any]) -> None:
    """One more JSON line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


class Watch:
    """What the steps of a Trainer did.

    Attributes:
        begins, ends: of each step, seconds of time.perf_counter: the host begins it, has launched it.
        losses: of the steps that the device has done.
        targets: of each step.
        gradients: at the first step, by parameter: float64 on the CPU. Only with ``keep_gradients``.
        after_step: called after each step with the number of steps until then.
    """

    def __init__(self, trainer: Any, *, keep_gradients: bool = False) -> None:
        self.trainer, self.keep_gradients = trainer, keep_gradients
        self.begins: list[float] = []
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.targets: list[int] = []
        self.gradients: dict[str, Any] = {}
        self.after_step: Callable[[int], None] = lambda steps: None
        take, read = trainer._step, trainer.steps.losses

        def taken(work: Any) -> None:
            self.begins.append(time.perf_counter())
            take(work)
            self.targets.append(work.n_targets)
            self.ends.append(time.perf_counter())
            self.after_step(len(self.ends))

        def losses() -> list[float]:
            values: list[float] = read()
            self.losses += values
            return values

        trainer._step, trainer.steps.losses = taken, losses
        trainer.optimizer.register_step_pre_hook(self._before_update)

    def _before_update(self, *_: Any) -> None:
        if self.keep_gradients and not self.gradients:
            parameters = self.trainer.model.named_parameters()
            self.gradients = {name: p.grad.detach().cpu().double() for name, p in parameters if p.grad is not None}

    def run(self, limit: float) -> range:
        """Goes on training for ``limit`` seconds, at least one step; the numbers of these steps."""
        first = len(self.ends)
        self.trainer.options = replace(self.trainer.options, max_seconds=limit)
        self.trainer.fit()
        return range(first, len(self.ends))


class Recorded:
    """Batches made beforehand, in a Loader's place: every epoch is the same."""

    resident, residence = None, "batches are made beforehand"

    def __init__(self, batches: Sequence[Any]) -> None:
        self.stored = batches

    def __len__(self) -> int:
        return len(self.stored)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        yield from self.stored[start:]
