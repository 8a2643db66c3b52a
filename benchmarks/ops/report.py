"""Results as a table in Markdown, as JSON and as a plot: each op beside its rivals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .case import OURS
from .run import Result

HEADER = (
    "op", "shape", "direction", "type", "fastseq", "best other", "ratio", "others", "of the roof", "memory", "launch"
)  # fmt: skip
LEAST_RATIO = 1.5  # what an op should reach beside its best rival


@dataclass(frozen=True)
class Row:
    """One op in one shape, direction and type.

    Attributes:
        ours: fastseq's result.
        rivals: the others that were measured, fastest first.
    """

    ours: Result
    rivals: tuple[Result, ...]

    @property
    def ratio(self) -> float | None:
        """Median of the best rival over fastseq's."""
        if not self.rivals or not self.ours.median or self.rivals[0].median is None:
            return None
        return self.rivals[0].median / self.ours.median


def rows(results: Sequence[Result]) -> list[Row]:
    """One row for each op, shape, direction and type, op after op. What was not started is no row: see ``summary``."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    order = list(dict.fromkeys(result.op for result in results))
    for result in sorted((r for r in results if r.direction), key=lambda r: order.index(r.op)):
        groups.setdefault((result.op, result.shape, result.dtype, result.direction), []).append(result)
    table = []
    for group in groups.values():
        timed = sorted((r for r in group if r.median is not None), key=lambda r: r.median or 0.0)
        rivals = tuple(r for r in timed if r.implementation != OURS)
        table += [Row(ours, rivals) for ours in group if ours.implementation == OURS]
    return table


def cells(row: Row) -> list[str]:
    """A row of the table, as HEADER names it."""
    ours, best = row.ours, row.rivals[0] if row.rivals else None
    key = [ours.op, ours.shape, ours.direction, ours.dtype]
    if ours.median is None:
        return [*key, ours.skipped or "–", *["–"] * (len(HEADER) - 5)]
    against = "–" if best is None else f"{best.implementation} {milliseconds(best)}"
    ratio = "–" if row.ratio is None else f"{row.ratio:.2f}×"
    others = ", ".join(f"{r.implementation} {1e3 * (r.median or 0.0):.3g}" for r in row.rivals[1:]) or "–"
    roof = "–" if ours.fraction is None else f"{ours.fraction:.0%} {ours.bound}"
    memory = " / ".join(megabytes(r.peak_bytes) for r in (ours, best) if r is not None)
    launch = "–" if ours.host is None or ours.device == "cpu" else f"{1e6 * ours.host:.0f} µs"
    memory = "–" if ours.peak_bytes is None else memory
    return [*key, milliseconds(ours), against, ratio, others, roof, memory, launch]


def milliseconds(result: Result) -> str:
    """Median with the quartiles in brackets."""
    if result.median is None or result.q1 is None or result.q3 is None:
        return "–"
    median, low, high = (
        f"{1e3 * x:.3g}" if x < 1 else f"{1e3 * x:,.0f}" for x in (result.median, result.q1, result.q3)
    )
    return f"{median} ({low} – {high}) ms"


def megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:,.1f} MB"


def summary(results: Sequence[Result], least: float = LEAST_RATIO) -> list[str]:
    """How many rows lie below the least ratio, and what was not measured and why."""
    compared = [row.ratio for row in rows(results) if row.ratio is not None]
    lines = [f"{sum(ratio < least for ratio in compared)} of {len(compared)} below {least:g}× of the best other."]
    if any(r.implementation == OURS and r.device == "cuda" and r.median and r.roof is None for r in results):
        lines.append("No roof: this GPU's bandwidth and rates are not listed in benchmarks/ops/chips.py.")
    reasons: dict[str, dict[str, None]] = {}
    for result in results:
        if result.skipped:
            name = f"{result.implementation} of {result.op} ({result.dtype})"
            reasons.setdefault(result.skipped, {})[name] = None
    for why, unique in reasons.items():
        names = list(unique)
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        lines.append(f"Not measured: {', '.join(names[:4])}{more}: {why}")
    return lines


def markdown(results: Sequence[Result], machine: Mapping[str, Any], aligned: bool = False) -> str:
    """The table with what it was measured on: for a file, or ``aligned`` for a screen."""
    table = [list(HEADER), *([cell.replace("|", "/") for cell in cells(row)] for row in rows(results))]
    widths = [max(map(len, column)) if aligned else 0 for column in zip(*table, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in table]
    lines.insert(1, "|" + "|".join("-" * max(3, width + 2) for width in widths) + "|")
    about = ", ".join(f"{key} {value}" for key, value in machine.items())
    return "\n".join(["# Ops", "", about, "", *lines, "", *summary(results), ""])


def document(results: Sequence[Result], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, for programs: times in seconds, memory in bytes."""
    return {"machine": dict(machine), "results": [{**asdict(r), "fraction": r.fraction} for r in results]}


def read(path: Path) -> tuple[list[Result], dict[str, Any]]:
    """Results and machine from a file of ``document``.

    Raises:
        ValueError: if it is no such file.
        OSError: if it cannot be read.
    """
    try:
        data = json.loads(path.read_text())
        return [Result(**{k: v for k, v in r.items() if k != "fraction"}) for r in data["results"]], data["machine"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not what python -m benchmarks.ops --json wrote ({error!r})") from error


def plot(results: Sequence[Result], path: Path, machine: Mapping[str, Any]) -> None:
    """Times of every implementation, a line for each row, on a logarithmic axis; the roof where the chip is known.

    Raises:
        ImportError: without matplotlib.
        ValueError: if nothing was measured, or the ending of ``path`` is no format of matplotlib's.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'fastseq-rec[cli]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = [row for row in rows(results) if row.ours.median is not None]
    if not table:
        raise ValueError(f"plot is {path}, but no op was measured: nothing to draw")
    points: dict[str, list[tuple[float, int]]] = {}  # of every implementation, and the roof
    for line, row in enumerate(table):
        for r in (row.ours, *row.rivals):
            points.setdefault(r.implementation, []).append((1e3 * (r.median or 0.0), line))
        if row.ours.roof:
            points.setdefault("roof", []).append((1e3 * row.ours.roof, line))
    figure, axes = pyplot.subplots(figsize=(11, 1.5 + 0.24 * len(table)), layout="constrained")
    styles: dict[str, dict[str, Any]] = {
        OURS: {"s": 45, "zorder": 3},
        "roof": {"s": 60, "marker": "|", "color": "black"},
    }
    for name, pairs in points.items():
        axes.scatter(*zip(*pairs, strict=True), label=name, **styles.get(name, {"s": 22, "zorder": 2}))
    labels = [f"{r.op}, {r.shape}, {r.direction}, {r.dtype}" for r in (row.ours for row in table)]
    axes.set_yticks(range(len(table)), labels, fontsize=7)
    axes.set_ylim(len(table) - 0.5, -0.5)  # the first row on top
    axes.set_xscale("log")
    axes.set_xlabel("median, ms")
    axes.grid(axis="both", alpha=0.3)
    axes.set_title(f"{machine.get('device', '')}, torch {machine.get('torch', '')}, {machine.get('date', '')}", size=9)
    axes.legend(fontsize=8)
    try:
        figure.savefig(path)
    finally:
        pyplot.close(figure)
