"""A file of pytest-benchmark as a table: every op beside the best of plain PyTorch and torch.compile.

    pytest benchmarks --benchmark-only --benchmark-json=FILE.json
    python benchmarks/op_table.py FILE.json

Medians in milliseconds with the quartiles in brackets. The ratio is that of medians, best rival / fastseq; what lies
below the bar is marked. An op without a rival, or without a figure of its own, has no ratio.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Key = tuple[str, str, str, str]  # op, shape, direction, dtype
Stats = Mapping[str, float]
BAR = 1.5


@dataclass(frozen=True)
class Row:
    """One op in one shape, direction and type; what was not measured is None.

    Attributes:
        eager: the fastest implementation that is neither fastseq nor compiled.
        ratio: median of the best of eager and compiled over fastseq's.
    """

    key: Key
    fastseq: Stats | None
    eager: Stats | None
    compiled: Stats | None
    ratio: float | None


def rows(benchmarks: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row for each op, shape, direction and type, in the order of the file."""
    groups: dict[Key, dict[str, Stats]] = {}
    for benchmark in benchmarks:
        info = benchmark["extra_info"]
        if "implementation" in info:
            shape = info["shape"] + (f" on {info['gpu']}" if "gpu" in info else "")
            key = (info["op"], shape, info["direction"], info["dtype"])
            groups.setdefault(key, {})[info["implementation"]] = benchmark["stats"]
    result = []
    for key, timed in groups.items():
        ours, compiled = timed.pop("fastseq", None), timed.pop("compiled", None)
        eager = min(timed.values(), key=lambda stats: stats["median"], default=None)
        rivals = [stats["median"] for stats in (eager, compiled) if stats is not None]
        ratio = min(rivals) / ours["median"] if rivals and ours is not None else None
        result.append(Row(key, ours, eager, compiled, ratio))
    return result


def markdown(table: Sequence[Row], bar: float = BAR) -> str:
    """The table, and a last line that counts what lies below the bar."""
    lines = ["| op | shape | direction | type | fastseq, ms | eager, ms | compiled, ms | ratio to the best |"]
    lines.append("|" + "---|" * 8)
    for row in table:
        cells = [*row.key, *(_milliseconds(stats) for stats in (row.fastseq, row.eager, row.compiled))]
        ratio = "–" if row.ratio is None else f"**{row.ratio:.2f}×**"
        if row.ratio is not None and row.ratio < bar:
            ratio += f" (below {bar:g}×)"
        lines.append("| " + " | ".join([*cells, ratio]) + " |")
    compared = [row.ratio for row in table if row.ratio is not None]
    below = sum(ratio < bar for ratio in compared)
    return "\n".join([*lines, "", f"{below} of {len(compared)} below {bar:g}×."])


def _milliseconds(stats: Stats | None) -> str:
    if stats is None:
        return "–"
    values = [1e3 * stats[name] for name in ("median", "q1", "q3")]
    median, low, high = (f"{x:.3g}" if x < 1000 else f"{x:,.0f}" for x in values)
    return f"{median} ({low} – {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="what --benchmark-json or --benchmark-save wrote")
    parser.add_argument("--bar", type=float, default=BAR, help="mark ratios below this")
    chosen = parser.parse_args()
    print(markdown(rows(json.loads(chosen.file.read_text())["benchmarks"]), chosen.bar))


if __name__ == "__main__":
    main()
