"""Results as a table, as Markdown and as a plot: each op beside the best of its rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .run import OURS, Result

HEADER = ("op", "shape", "direction", "type", "fastseq", "best other", "ratio", "of the roof", "memory", "launch")
BAR = 1.5


@dataclass(frozen=True)
class Row:
    """One op in one shape, direction and type.

    Attributes:
        ours: fastseq's result.
        rivals: the others, measured or not.
    """

    ours: Result
    rivals: tuple[Result, ...]

    @property
    def best(self) -> Result | None:
        """The fastest rival that was measured."""
        measured = [other for other in self.rivals if other.median is not None]
        return min(measured, key=lambda other: other.median or 0.0, default=None)

    @property
    def ratio(self) -> float | None:
        """Median of the best rival over fastseq's."""
        best = self.best
        if best is None or best.median is None or not self.ours.median:
            return None
        return best.median / self.ours.median


def rows(results: Sequence[Result]) -> list[Row]:
    """One row for each op, shape, direction and type, op after op. What was not started is no row: see ``summary``."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    order = list(dict.fromkeys(result.op for result in results))
    for result in sorted((r for r in results if r.direction), key=lambda r: order.index(r.op)):
        groups.setdefault((result.op, result.shape, result.dtype, result.direction), []).append(result)
    found = []
    for group in groups.values():
        ours = next((r for r in group if r.implementation == OURS), None)
        if ours is not None:
            found.append(Row(ours, tuple(r for r in group if r.implementation != OURS)))
    return found


def cells(row: Row) -> list[str]:
    """A row of the table, as HEADER names it."""
    ours, best = row.ours, row.best
    place = [ours.op, ours.shape, ours.direction, ours.dtype]
    if ours.median is None:
        return [*place, ours.skipped or "–", *["–"] * (len(HEADER) - 5)]
    against = "–" if best is None else f"{best.implementation} {milliseconds(best)}"
    ratio = "–" if row.ratio is None else f"{row.ratio:.2f}×"
    roof = "–" if ours.fraction is None else f"{ours.fraction:.0%} {ours.bound}"
    memory = " / ".join(megabytes(r.peak_bytes) for r in (ours, best) if r is not None)
    launch = "–" if ours.host is None or ours.device == "cpu" else f"{1e6 * ours.host:.0f} µs"
    return [*place, milliseconds(ours), against, ratio, roof, memory if ours.peak_bytes is not None else "–", launch]


def milliseconds(result: Result) -> str:
    """Median with the quartiles in brackets."""
    if result.median is None or result.q1 is None or result.q3 is None:
        return "–"
    median, low, high = (f"{1e3 * x:.3g}" for x in (result.median, result.q1, result.q3))
    return f"{median} ({low} – {high}) ms"


def megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:,.1f} MB"


def summary(results: Sequence[Result], bar: float = BAR) -> list[str]:
    """How many rows lie below the bar, and what was not measured and why."""
    compared = [row.ratio for row in rows(results) if row.ratio is not None]
    lines = [f"{sum(ratio < bar for ratio in compared)} of {len(compared)} below {bar:g}× of the best other."]
    if any(
        r.implementation == OURS and r.device == "cuda" and r.median is not None and r.roof is None for r in results
    ):
        lines.append("No roof: this GPU's bandwidth and rates are not listed in benchmarks/ops/chips.py.")
    reasons: dict[str, list[str]] = {}
    for result in results:
        if result.skipped:
            reasons.setdefault(result.skipped, []).append(f"{result.implementation} of {result.op} ({result.dtype})")
    for why, names in reasons.items():
        unique = list(dict.fromkeys(names))
        more = f" and {len(unique) - 4} more" if len(unique) > 4 else ""
        lines.append(f"Not measured: {', '.join(unique[:4])}{more}: {why}")
    return lines


def markdown(results: Sequence[Result], machine: Mapping[str, Any]) -> str:
    """The table with what it was measured on, for a file."""
    table = rows(results)
    about = ", ".join(f"{key} {value}" for key, value in machine.items())
    lines = ["# Kernel benchmarks", "", about, ""]
    lines += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in cells(row)) + " |" for row in table]
    return "\n".join([*lines, "", *summary(results), ""])


def document(results: Sequence[Result], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, for programs: times in seconds, memory in bytes."""
    return {"machine": dict(machine), "results": [{**asdict(r), "fraction": r.fraction} for r in results]}


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
    names = list(dict.fromkeys(r.implementation for row in table for r in (row.ours, *row.rivals) if r.median))
    figure, axes = pyplot.subplots(figsize=(11, 1.5 + 0.24 * len(table)), layout="constrained")
    for name in names:
        points = [
            (1e3 * r.median, place)
            for place, row in enumerate(table)
            for r in (row.ours, *row.rivals)
            if r.implementation == name and r.median is not None
        ]
        ours = name == OURS
        times, places = zip(*points, strict=True)
        axes.scatter(times, places, s=45 if ours else 22, label=name, zorder=3 if ours else 2)
    roofs = [(1e3 * row.ours.roof, place) for place, row in enumerate(table) if row.ours.roof]
    if roofs:
        times, places = zip(*roofs, strict=True)
        axes.scatter(times, places, s=60, label="roof", marker="|", color="black")
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
