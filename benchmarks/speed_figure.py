"""docs/speed.png: training throughput of fastseq beside its peers, from what benchmarks.peers wrote.

python -m benchmarks.peers … --json >> benchmarks/results/peers.jsonl    # a line for every comparison
python -m benchmarks.speed_figure benchmarks/results/peers.jsonl docs/speed.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NAMES = {"warprec": "WarpRec", "rectools": "RecTools", "recbole": "RecBole"}


def main(source: Path, target: Path) -> None:
    """One group of bars for every comparison, targets/s on a logarithmic axis, the ratio beside fastseq's bar."""
    rows = [json.loads(line) for line in source.read_text().splitlines()][::-1]
    figure, axis = plt.subplots(figsize=(8, 0.75 * len(rows) + 1), layout="constrained")
    for position, row in enumerate(rows):
        ours = row["fastseq"]["fp32"]
        axis.barh(position + 0.2, ours["median"], 0.36, color="tab:blue")
        axis.barh(position - 0.2, row["peer"]["median"], 0.36, color="tab:gray")
        axis.text(
            ours["median"] * 1.1,
            position + 0.2,
            f"fastseq, {ours['ratio']['median']:,.{int(ours['ratio']['median'] < 20)}f}×",
            va="center",
        )
        axis.text(row["peer"]["median"] * 1.1, position - 0.2, NAMES[row["peer"]["name"]], va="center")
    labels = [f"{row['model']}, {Path(row['data']).stem}, L = {row['max_len']}" for row in rows]
    axis.set(xscale="log", xlabel="training throughput, targets/s", yticks=range(len(rows)))
    axis.set_yticklabels(labels)
    axis.set_xlim(10, axis.get_xlim()[1] * 5)
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
