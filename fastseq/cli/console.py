"""What the commands share: how they print, the option --json, and how they end early.

Ids, paths and other text of the user are printed as they are: never read as markup, never cut.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

stderr = Console(stderr=True, markup=False, emoji=False, highlight=False)
stdout = Console(markup=False, emoji=False, highlight=False)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n; auto is a GPU where there is one.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}  # a tab would end a field


def write_any_text() -> None:
    """What the encoding of stdout or stderr cannot express is written as ``\\xe9``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """One line on stderr."""
    stderr.print(text, soft_wrap=True)


def show(text: str, style: str | None = None) -> None:
    """One line on stdout."""
    stdout.print(text, style=style, soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on a terminal, where long cells go on in the next line. Elsewhere a line a row, with tabs between fields.

    Args:
        title: above the table; elsewhere on stderr.
        rows: cells of any type; a list is several fields, or one cell with commas.
    """
    cells = [[[str(x).translate(_CONTROLS) for x in (c if isinstance(c, list) else [c])] for c in row] for row in rows]
    if sys.stdout.isatty():
        table = Table(*(Column(name, overflow="fold") for name in columns), title=title)
        for row in cells:
            table.add_row(*map(", ".join, row))
        stdout.print(table)
        return
    if title:
        say(title)
    print("\t".join(columns))
    for row in cells:
        print("\t".join(text for cell in row for text in cell))


def fail(message: str, code: int) -> NoReturn:
    """Ends the process with one line on stderr."""
    print(f"fastseq: {message}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def progress_bars(metric_shown: str, quiet: bool) -> Iterator[Callable[[str, Any], None] | None]:
    """Progress bars on stderr: one a model, with epoch, loss, speed and time left."""
    if quiet:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[epoch]}", markup=False),
        TextColumn("loss {task.fields[loss]:.4f}", markup=False),
        TextColumn("{task.fields[speed]:,.0f} targets/s", markup=False),
        TextColumn("{task.fields[metric]}", markup=False),
        TimeRemainingColumn(),
    )
    if not stderr.is_terminal:  # a log: one line an epoch

        def line(name: str, progress: Any) -> None:
            if (
                progress.validation is not None
                or progress.step * progress.epochs == progress.epoch * progress.total_steps
            ):
                value = (progress.validation or {}).get(metric_shown)
                shown = "" if value is None else f", {metric_shown} {value:.4f}"
                say(
                    f"{name}: epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:.4f}{shown}, "
                    f"{progress.targets_per_second:,.0f} targets/s"
                )

        yield line
        return
    with Progress(*columns, console=stderr) as bars:
        tasks: dict[str, Any] = {}
        metric = dict[str, str]()

        def report(name: str, progress: Any) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(
                    name, total=progress.total_steps, epoch="", loss=0.0, speed=0.0, metric="", start=True
                )
            if progress.validation and metric_shown in progress.validation:
                metric[name] = f"{metric_shown} {progress.validation[metric_shown]:.4f}"
            bars.update(
                tasks[name],
                completed=progress.step,
                epoch=f"epoch {progress.epoch}/{progress.epochs}",
                loss=progress.loss,
                speed=progress.targets_per_second,
                metric=metric.get(name, ""),
            )

        yield report
