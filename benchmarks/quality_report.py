"""Tables (Markdown) and the figure from the runs of stride_quality.py and peers_quality.py.

    python benchmarks/quality_report.py benchmarks/results/ml-100k_quality.jsonl --figure docs/quality.png

A run's score at a moment is the test score of its best validation NDCG@10 until then. Seconds of an epoch are medians
over all runs of a setting, by process CPU time (--clock cpu) or on the wall (--clock wall, for a quiet machine).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

Setting = tuple[str, int | str]  # model, batches
Runs = dict[Setting, dict[int, dict[str, Any]]]  # ... by seed
METRICS = ("HR@10", "NDCG@10")


def read(paths: list[Path]) -> tuple[Runs, Runs, list[dict[str, Any]]]:
    """fp32 and bf16 runs by setting and seed, the longest where one stands twice, and the last record of each peer."""
    runs: Runs = {}
    bf16: Runs = {}
    peers: dict[str, dict[str, Any]] = {}
    for line in "\n".join(path.read_text() for path in paths).splitlines():
        record = json.loads(line)
        if record["kind"] == "peer":
            peers[record["peer"]] = record
            continue
        kept = bf16 if record.get("precision") == "bf16" else runs
        seeds = kept.setdefault((record["model"], record["batches"]), {})
        if record["epochs"] > seeds.get(record["seed"], {"epochs": 0})["epochs"]:
            seeds[record["seed"]] = record
    return runs, bf16, list(peers.values())


def epoch_seconds(seeds: dict[int, dict[str, Any]], clock: str) -> float:
    """Median seconds of an epoch."""
    found = []
    for run in seeds.values():
        spent = list(zip([0, *run["curve"]["epoch"]], [0.0, *run["curve"][clock]], strict=True))
        found += [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairwise(spent)]
    return statistics.median(found)


def best_until(run: dict[str, Any], epochs: float) -> dict[str, float] | None:
    """Epoch and test scores of the best validation among the first ``epochs`` epochs; None: not one was ranked."""
    curve = run["curve"]
    places = [k for k, epoch in enumerate(curve["epoch"]) if epoch <= epochs]
    if not places:
        return None
    best = max(places, key=lambda k: curve["validation NDCG@10"][k])
    return {"epoch": curve["epoch"][best]} | {metric: curve[f"test {metric}"][best] for metric in METRICS}


def spread(values: list[float], digits: int = 4) -> str:
    """Mean ± standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}".replace("0.", ".")


def row(cells: list[Any]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def name_of(batches: int | str) -> str:
    """As the tables and the figure call it."""
    return batches if isinstance(batches, str) else f"stride {batches}"


def tables(runs: Runs, clock: str) -> str:
    """One table a model: every setting to its end, at equal epochs and at equal time."""
    out = []
    for model in dict.fromkeys(model for model, _ in runs):
        settings = sorted((s for s in runs if s[0] == model), key=lambda s: -s[1] if isinstance(s[1], int) else 0)
        common = min(run["epochs"] for s in settings for run in runs[s].values())
        seconds = {s: epoch_seconds(runs[s], clock) for s in settings}
        quick = min(settings, key=lambda s: seconds[s])
        budget = seconds[quick] * min(run["epochs"] for run in runs[quick].values())
        columns = [f"HR, NDCG at {common} epochs", f"within {budget / 2:.0f} s", f"within {budget:.0f} s"]
        columns += ["to the end", "epochs", "best epochs"]
        out += [
            f"**{model}**, test part, mean ± standard deviation over seeds:",
            "",
            row(["batches", "seeds", "s / epoch", *columns]),
            row(["---"] * (3 + len(columns))),
        ]
        for setting in settings:
            seeds = runs[setting]
            cells: list[Any] = [name_of(setting[1]), len(seeds), f"{seconds[setting]:.2f}"]
            for limit in (common, budget / 2 / seconds[setting], budget / seconds[setting], math.inf):
                reached = [best_until(run, limit) for run in seeds.values()]
                known = [r for r in reached if r is not None]
                cells.append(", ".join(spread([r[metric] for r in known]) for metric in METRICS) if known else "none")
            ends = [best_until(run, math.inf) for run in seeds.values()]
            cells.append(", ".join(str(run["epochs"]) for run in seeds.values()))
            cells.append(", ".join(str(end["epoch"]) for end in ends if end))
            out.append(row(cells))
        out.append("")
        out += paired(runs, settings, common)
    return "\n".join(out)


def paired(runs: Runs, settings: list[Setting], epochs: int) -> list[str]:
    """Differences to per-target training, seed by seed, at equal epochs."""
    base = next((s for s in settings if isinstance(s[1], str)), None)
    lines = []
    for setting in settings:
        if base is None or setting == base:
            continue
        shared = sorted(set(runs[setting]) & set(runs[base]))
        gaps: list[float] = []
        for seed in shared:
            mine, theirs = best_until(runs[setting][seed], epochs), best_until(runs[base][seed], epochs)
            if mine is not None and theirs is not None:
                gaps.append(mine["NDCG@10"] - theirs["NDCG@10"])
        listed = ", ".join(f"{gap:+.4f}" for gap in gaps)
        lines.append(f"- {name_of(setting[1])} minus {base[1]}, NDCG@10 at {epochs} epochs, seed by seed: {listed}")
    return [*lines, ""]


def precisions(runs: Runs, bf16: Runs) -> str:
    """bf16 beside fp32: runs of the same model, batches and seed, as far as both go."""
    out = [
        "bf16 and fp32, paired seeds, test part:",
        "",
        row(
            [
                "model, batches",
                "seeds",
                "epochs",
                "fp32 HR, NDCG",
                "bf16 HR, NDCG",
                "bf16 minus fp32, NDCG, seed by seed",
            ]
        ),
        row(["---"] * 6),
    ]
    for setting in bf16:
        seeds = sorted(set(bf16[setting]) & set(runs.get(setting, {})))
        both = [bf16[setting][seed] for seed in seeds], [runs[setting][seed] for seed in seeds]
        if not seeds:
            continue
        epochs = min(run["epochs"] for part in both for run in part)
        low, full = ([found for run in part if (found := best_until(run, epochs))] for part in both)
        scores = [", ".join(spread([found[metric] for found in part]) for metric in METRICS) for part in (full, low)]
        gaps = ", ".join(f"{a['NDCG@10'] - b['NDCG@10']:+.4f}" for a, b in zip(low, full, strict=True))
        out.append(row([f"{setting[0]}, {name_of(setting[1])}", len(seeds), epochs, *scores, gaps]))
    return "\n".join(out)


def draw(runs: Runs, peers: list[dict[str, Any]], clock: str, path: Path) -> None:
    """NDCG@10 of the test part over seconds of training, one panel a model; the peers beside SASRec."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(model for model, _ in runs))
    figure = Figure(figsize=(5 * len(models), 4.2), layout="constrained")
    for place, model in enumerate(models, start=1):
        axis = figure.add_subplot(1, len(models), place)
        for setting in sorted((s for s in runs if s[0] == model), key=lambda s: -s[1] if isinstance(s[1], int) else 0):
            seeds = runs[setting]
            pace = epoch_seconds(seeds, clock)
            found: dict[int, list[float]] = {}
            for run in seeds.values():
                for epoch, value in zip(run["curve"]["epoch"], run["curve"]["test NDCG@10"], strict=True):
                    found.setdefault(epoch, []).append(value)
            found = {epoch: values for epoch, values in found.items() if len(values) == len(seeds)}
            times = [epoch * pace for epoch in found]
            means = [statistics.mean(values) for values in found.values()]
            (line,) = axis.plot(times, means, "-", lw=1.5, label=f"fastseq, {name_of(setting[1])}")
            low, high = ([pick(values) for values in found.values()] for pick in (min, max))
            axis.fill_between(times, low, high, color=line.get_color(), alpha=0.15, lw=0)
        for peer in peers if model == "SASRec" else ():
            name = {"warprec": "WarpRec 2.2.8", "rectools": "RecTools 0.19"}[peer["peer"]]
            axis.plot(
                peer["curve"][clock], peer["curve"]["test NDCG@10"], "k--" if name[0] == "W" else "k:", label=name
            )
        axis.set_xscale("log")
        axis.set_title(model)
        axis.set_xlabel("CPU seconds of training" if clock == "cpu_seconds" else "seconds of training")
        axis.set_ylabel("NDCG@10, test part")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    figure.savefig(path, format="png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON lines")
    parser.add_argument("--figure", type=Path, help="PNG to draw")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    chosen = parser.parse_args()
    runs, bf16, peers = read(chosen.results)
    clock = f"{chosen.clock}_seconds"
    print(tables(runs, clock))
    if bf16:
        print(precisions(runs, bf16))
    if chosen.figure is not None:
        draw(runs, peers, clock, chosen.figure)


if __name__ == "__main__":
    main()
