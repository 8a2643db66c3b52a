"""The training curve as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .checkpoint import atomic_write


def draw_curve(records: Sequence[Mapping[str, Any]], metric: str | None, path: Path) -> bool:
    """Loss and validation metric against steps and against seconds of training.

    Args:
        records: the lines of ``metrics.jsonl``.
        metric: name of the validation metric, such as ``"NDCG@10"``; None: none was measured.
        path: of the PNG.

    Returns:
        Whether it was drawn: not where matplotlib cannot be imported, or there is nothing to draw.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    if not records:
        return False
    try:
        from matplotlib.figure import Figure  # no pyplot: no window, no global state
    except (ImportError, ValueError):  # the second: MPLBACKEND names a backend that is not installed, as Jupyter's
        return False
    figure = Figure(figsize=(10, 4), layout="constrained")
    for panel, (axis, key) in enumerate((("step", "step"), ("seconds of training", "seconds")), start=1):
        left = figure.add_subplot(1, 2, panel)
        left.plot([r[key] for r in records], [r["loss"] for r in records], "o-", ms=3, color="tab:blue")
        left.set_xlabel(axis)
        left.set_ylabel("training loss", color="tab:blue")
        measured = [r for r in records if metric in r.get("validation", {})]
        if metric is not None and measured:
            right = left.twinx()
            values = [r["validation"][metric] for r in measured]
            right.plot([r[key] for r in measured], values, "s-", ms=3, color="tab:orange")
            right.set_ylabel(f"validation {metric}", color="tab:orange")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    atomic_write(path, lambda file: file.write(picture.getvalue()))
    return True
