"""docs/speed.png: training throughput of fastseq beside its peers, from what benchmarks.peers wrote.

python -m benchmarks.peers … >> FILE.jsonl                 # a line for every comparison
python -m benchmarks.speed_figure FILE.jsonl docs/speed.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.quality import PEER_NAMES


def draw(source: Path, target: Path) -> None:
    """A group of bars for every comparison in fp32, targets/s on a logarithmic axis, the ratio beside fastseq's bar."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in source.read_text().splitlines()][::-1]
    rows = [row for row in rows if "fp32" in row["fastseq"]]
    figure = Figure(figsize=(8, 0.75 * len(rows) + 1), layout="constrained")
    axis = figure.add_subplot()
    for position, row in enumerate(rows):
        ours = row["fastseq"]["fp32"]
        axis.barh(position + 0.2, ours["median"], 0.36, color="tab:blue")
        axis.barh(position - 0.2, row["peer"]["median"], 0.36, color="tab:gray")
        ratio = f"fastseq, {ours['ratio']['median']:,.{int(ours['ratio']['median'] < 20)}f}×"
        axis.text(ours["median"] * 1.1, position + 0.2, ratio, va="center")
        axis.text(row["peer"]["median"] * 1.1, position - 0.2, PEER_NAMES[row["peer"]["name"]].split()[0], va="center")
    labels = [f"{row['model']}, {Path(row['data']).stem}, L = {row['max_len']}" for row in rows]
    axis.set(xscale="log", xlabel="training throughput, targets/s", yticks=range(len(rows)))
    axis.set_yticklabels(labels)
    axis.set_xlim(10, axis.get_xlim()[1] * 5)
    figure.savefig(target, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="JSON lines of benchmarks.peers")
    parser.add_argument("target", type=Path, help="PNG to draw")
    args = parser.parse_args()
    draw(args.source, args.target)


if __name__ == "__main__":
    main()
