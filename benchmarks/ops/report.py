"""Results as a table in Markdown, as JSON and as a plot: each op beside its rivals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ..measure import table
from .case import OURS
from .run import Result

HEADER = (
    "op", "shape", "direction", "type", "fastseq", "best other", "ratio", "others", "of the roof", "memory", "launch"
)  # fmt: skip
LEAST_RATIO = 1.5  # what an op should reach beside its best rival


class Row(NamedTuple):
    """One op in one shape, direction and type: fastseq's result, and the others that were measured, fastest first."""

    ours: Result
    rivals: list[Result]

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
    lines = []
    for group in groups.values():
        rivals = [r for r in group if r.implementation != OURS and r.median is not None]
        rivals.sort(key=lambda r: r.median or 0.0)
        lines += [Row(ours, rivals) for ours in group if ours.implementation == OURS]
    return lines


def cells(row: Row) -> list[str]:
    """A row of the table, as HEADER names it."""
    ours, best = row.ours, row.rivals[0] if row.rivals else None
    key = [ours.op, ours.shape, ours.direction, ours.dtype]
    if ours.median is None:
        return [*key, ours.skipped or "–", *["–"] * (len(HEADER) - 5)]
    on_gpu = ours.device != "cpu" and ours.host is not None
    memory = [f"{r.peak_bytes / 1e6:,.1f} MB" for r in (ours, best) if r is not None and r.peak_bytes is not None]
    return [
        *key,
        milliseconds(ours),
        "–" if best is None else f"{best.implementation} {milliseconds(best)}",
        "–" if row.ratio is None else f"{row.ratio:.2f}×",
        ", ".join(f"{r.implementation} {1e3 * (r.median or 0.0):.3g}" for r in row.rivals[1:]) or "–",
        "–" if ours.fraction is None else f"{ours.fraction:.0%} {ours.bound}",
        " / ".join(memory) or "–",
        f"{1e6 * (ours.host or 0.0):.0f} µs" if on_gpu else "–",
    ]


def milliseconds(result: Result) -> str:
    """Median with the quartiles in brackets."""
    times = [1e3 * (seconds or 0.0) for seconds in (result.median, result.q1, result.q3)]
    return "{} ({} – {}) ms".format(*(f"{ms:.3g}" if ms < 1000 else f"{ms:,.0f}" for ms in times))


def summary(results: Sequence[Result]) -> list[str]:
    """How many rows lie below the least ratio, and what was not measured and why."""
    compared = [row.ratio for row in rows(results) if row.ratio is not None]
    below = sum(ratio < LEAST_RATIO for ratio in compared)
    lines = [f"{below} of {len(compared)} below {LEAST_RATIO:g}× of the best other."]
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


def markdown(results: Sequence[Result], machine: Mapping[str, Any]) -> str:
    """The table with what it was measured on."""
    about = ", ".join(f"{key} {value}" for key, value in machine.items())
    lines = table(HEADER, [[cell.replace("|", "/") for cell in cells(row)] for row in rows(results)])
    return "\n".join(["# Ops", "", about, "", lines, "", *summary(results), ""])


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
        ImportError: without matplotlib (pip install 'fastseq-rec[cli]').
        ValueError: if the ending of ``path`` is no format of matplotlib's.
    """
    from matplotlib.figure import Figure

    lines = [row for row in rows(results) if row.ours.median is not None]
    points: dict[str, list[tuple[float, int]]] = {}  # of every implementation, and the roof
    for line, row in enumerate(lines):
        times = [(r.implementation, r.median) for r in (row.ours, *row.rivals)] + [("roof", row.ours.roof)]
        for name, seconds in times:
            if seconds:
                points.setdefault(name, []).append((1e3 * seconds, line))
    figure = Figure(figsize=(11, 1.5 + 0.24 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    for name, pairs in points.items():
        style: dict[str, Any] = {"s": 45 if name == OURS else 22}
        style |= {"marker": "|", "color": "black"} if name == "roof" else {}
        axes.scatter(*zip(*pairs, strict=True), label=name, **style)
    labels = [f"{r.op}, {r.shape}, {r.direction}, {r.dtype}" for r in (row.ours for row in lines)]
    axes.set_yticks(range(len(lines)), labels, fontsize=7)
    axes.set_ylim(len(lines) - 0.5, -0.5)  # the first row on top
    axes.set(
        xscale="log", xlabel="median, ms", title=", ".join(str(machine.get(k)) for k in ("device", "torch", "date"))
    )
    axes.grid(axis="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)
