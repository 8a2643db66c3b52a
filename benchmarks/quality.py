"""Ranking quality of shared windows beside per-target training, with paired seeds: the study, its tables and figure.

    python -m benchmarks.quality train --data ml-100k.inter --out FILE                                 # every run
    python -m benchmarks.quality train --data ml-100k.inter --out FILE --models SASRec --batches 50 25
    python -m benchmarks.quality train --data ml-100k.inter --out FILE --batches L --precision bf16    # fp32's pairs
    python -m benchmarks.quality report benchmarks/results/ml-100k_quality.jsonl --figure docs/quality.png

Runs of the same model and seed start from the same weights and differ only in the batches: a window stride, or one
sequence per target. Both held-out parts are ranked after every epoch, or every second where there are more than ten:
leave-one-out, the whole catalogue, seen items left out. Runs that the file already holds are left out; Ctrl-C keeps
what the current run has reached.

Each run records the seconds of training, evaluations left out, by two clocks: on the wall, right on a quiet machine,
and the process's CPU time, which what else runs distorts little. In the tables a run's score at a moment is the test
score of its best validation NDCG@10 until then; seconds of an epoch are medians over all runs of a setting.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.measure import append, table
from fastseq._process import own_process

COMMON = {"embedding_size": 64, "reg_weight": 0.0, "weight_decay": 0.0, "learning_rate": 1e-3, "batch_size": 512}
PARAMS: dict[str, dict[str, Any]] = {
    "SASRec": {"n_layers": 2, "n_heads": 1, "inner_size": 64, "dropout_prob": 0.2, "attn_dropout_prob": 0.2}
    | {"max_seq_len": 50},
    "GRU4Rec": {"hidden_size": 64, "num_layers": 1, "dropout_prob": 0.2, "max_seq_len": 50},
    "Caser": {"n_h": 8, "n_v": 4, "dropout_prob": 0.3, "max_seq_len": 20},
}
PER_TARGET = "per target"
# Epochs of shared windows, which are cheap, and of batches where every target has a sequence of its own.
EPOCHS = {"SASRec": (40, 10), "GRU4Rec": (40, 10), "Caser": (10, 10)}
METRICS = ("HR@10", "NDCG@10")
PEER_NAMES = {"warprec": "WarpRec 2.2.8", "rectools": "RecTools 0.19", "recbole": "RecBole 1.2.1"}
CLOCKS = {"cpu_seconds": time.process_time, "wall_seconds": time.perf_counter}
CLOCK = "cpu_seconds"  # of the tables and the figure

Run = dict[str, Any]
Setting = tuple[str, int | str]  # model, batches
Runs = dict[Setting, dict[int, Run]]  # ... by seed


def name_of(batches: int | str) -> str:
    """As the tables and the figure call it."""
    return batches if isinstance(batches, str) else f"stride {batches}"


# The study.


def add_scores(curve: dict[str, list[float]], evaluation: Any, part: str) -> None:
    """One more point of HR@10 and NDCG@10 of a held-out part."""
    for metric in METRICS:
        curve.setdefault(f"{part} {metric}", []).append(round(evaluation.metrics[metric], 5))


def train(name: str, batches: int | str, seed: int, split: Any, epochs: int, precision: Any) -> Run:
    """Trains one model.

    Returns:
        The record of the run: per ranked epoch the cumulated seconds of training and the scores of both parts.
    """
    from fastseq.models import MODELS
    from fastseq.training import Callback, Trainer, TrainingOptions, evaluate

    data = split.interactions
    stride = None if batches == PER_TARGET else batches
    params = COMMON | PARAMS[name] | {"neg_samples": 1, "epochs": epochs, "window_stride": stride}
    model = MODELS[name](params, {"n_users": data.n_users, "n_items": data.n_items}, seed=seed)
    curve: dict[str, list[float]] = {key: [] for key in ("epoch", "loss", *CLOCKS)}
    spent, since = dict.fromkeys(CLOCKS, 0.0), dict.fromkeys(CLOCKS, 0.0)

    def start() -> None:
        since.update({key: clock() for key, clock in CLOCKS.items()})

    class Ranked(Callback):
        """Ranks after epochs. The time of the evaluations does not count."""

        def on_epoch(self, line: dict[str, Any]) -> None:
            for key, clock in CLOCKS.items():
                spent[key] += clock() - since[key]
            if epochs <= 10 or line["epoch"] % 2 == 0 or line["epoch"] == epochs:
                curve["epoch"].append(line["epoch"])
                curve["loss"].append(round(line["loss"], 5))
                for key in CLOCKS:
                    curve[key].append(round(spent[key], 6))  # a tiny run takes milliseconds
                for part in ("validation", "test"):
                    add_scores(curve, evaluate(model, split, part, mask_seen="history", coverage=False), part)
            start()

    options = TrainingOptions(
        seed=seed,
        precision=precision,
        validation_metric=None,
        per_target=batches == PER_TARGET,
        progress_every_seconds=float("inf"),  # only after epochs
    )
    trainer = Trainer(model, split, options, callbacks=[Ranked()])
    start()
    result = trainer.fit()
    about = {"kind": "run", "model": name, "batches": batches, "seed": seed, "precision": precision}
    return about | {"epochs": max([0, *curve["epoch"]]), "stopped": result.stopped, "curve": curve}


def study(args: argparse.Namespace) -> None:
    import torch

    from fastseq.data import leave_one_out, read_interactions
    from fastseq.training.throughput import versions

    if args.threads:
        torch.set_num_threads(args.threads)
    split = leave_one_out(read_interactions(args.data))
    about = {"data": args.data.name, "threads": torch.get_num_threads(), "date": date.today().isoformat()}
    about |= {"versions": versions()}
    stored = read([args.out] if args.out.exists() else [])[args.precision == "bf16"]
    settings: list[Setting] = []
    for name in args.models:
        longest = PARAMS[name]["max_seq_len"]
        known = {"per-target": PER_TARGET, "L": longest}
        batches_of = args.batches or [longest, longest // 2, 1, "per-target"]
        settings += [(name, known.get(str(batches)) or int(batches)) for batches in batches_of]
    for seed in args.seeds:
        for name, batches in settings:
            epochs = args.epochs or EPOCHS[name][batches in (1, PER_TARGET)]
            if stored.get((name, batches), {}).get(seed, {"epochs": 0})["epochs"] >= epochs:
                continue
            run = train(name, batches, seed, split, epochs, args.precision)
            if run["epochs"]:
                append(args.out, run | about)
            print(name, batches, seed, run["stopped"], run["epochs"], flush=True)
            if run["stopped"] == "interrupted":
                return


# The report.


def read(paths: list[Path]) -> tuple[Runs, Runs, list[Run]]:
    """fp32 and bf16 runs by setting and seed, the longest where one stands twice, and the last record of each peer."""
    runs: Runs = {}
    bf16: Runs = {}
    peers: dict[str, Run] = {}
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


def epoch_seconds(seeds: dict[int, Run]) -> float:
    """Median seconds of an epoch."""
    times = []
    for run in seeds.values():
        spent = list(zip([0, *run["curve"]["epoch"]], [0.0, *run["curve"][CLOCK]], strict=True))
        times += [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairwise(spent)]
    return statistics.median(times)


def best_until(run: Run, epochs: float = math.inf) -> dict[str, float] | None:
    """Epoch and test scores of the best validation among the first ``epochs`` epochs; None: not one was ranked."""
    names = ["validation NDCG@10", "epoch", *(f"test {metric}" for metric in METRICS)]
    points = [point for point in zip(*(run["curve"][name] for name in names), strict=True) if point[1] <= epochs]
    if not points:
        return None
    return dict(zip(("epoch", *METRICS), max(points, key=lambda point: point[0])[1:], strict=True))


def scores(bests: list[dict[str, float] | None]) -> str:
    """Mean ± standard deviation of each metric."""
    cells = []
    for metric in METRICS:
        values = [best[metric] for best in bests if best is not None]
        if not values:
            return "none"
        deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.4f}{deviation}".replace("0.", "."))
    return ", ".join(cells)


def gaps(ours: dict[int, Run], theirs: dict[int, Run], epochs: int) -> str:
    """Differences in NDCG@10 at equal epochs, seed by seed."""
    pairs = [[best_until(side[seed], epochs) for side in (ours, theirs)] for seed in sorted(set(ours) & set(theirs))]
    return ", ".join(f"{a['NDCG@10'] - b['NDCG@10']:+.4f}" for a, b in pairs if a is not None and b is not None)


def of_model(runs: Runs, model: str) -> list[Setting]:
    """Its settings, large strides first, per-target batches last."""
    settings = [setting for setting in runs if setting[0] == model]
    return sorted(settings, key=lambda s: -s[1] if isinstance(s[1], int) else 0)


def tables(runs: Runs) -> str:
    """One table a model: every setting to its end, at equal epochs and at equal time."""
    out = []
    for model in dict.fromkeys(model for model, _ in runs):
        settings = of_model(runs, model)
        common = min(run["epochs"] for s in settings for run in runs[s].values())
        pace = {s: epoch_seconds(runs[s]) for s in settings}
        quick = min(settings, key=lambda s: pace[s])
        budget = pace[quick] * min(run["epochs"] for run in runs[quick].values())
        header = ["batches", "seeds", "s / epoch", f"HR, NDCG at {common} epochs", f"within {budget / 2:.0f} s"]
        header += [f"within {budget:.0f} s", "to the end", "epochs", "best epochs"]
        rows = []
        for setting in settings:
            seeds = runs[setting].values()
            limits = (common, budget / 2 / pace[setting], budget / pace[setting], math.inf)
            reached = [scores([best_until(run, limit) for run in seeds]) for limit in limits]
            ends = ", ".join(str(best["epoch"]) for run in seeds if (best := best_until(run)))
            lengths = ", ".join(str(run["epochs"]) for run in seeds)
            rows.append([name_of(setting[1]), len(seeds), f"{pace[setting]:.2f}", *reached, lengths, ends])
        out += [f"**{model}**, test part, mean ± standard deviation over seeds:", "", table(header, rows), ""]
        base = (model, PER_TARGET)
        for setting in settings if base in settings else ():
            if setting != base:
                words = f"- {name_of(setting[1])} minus {PER_TARGET}, NDCG@10 at {common} epochs, seed by seed: "
                out.append(words + gaps(runs[setting], runs[base], common))
        out.append("")
    return "\n".join(out)


def precisions(runs: Runs, bf16: Runs) -> str:
    """bf16 beside fp32: runs of the same model, batches and seed, as far as both go."""
    rows = []
    for setting, low in bf16.items():
        full = runs.get(setting, {})
        seeds = sorted(set(low) & set(full))
        if not seeds:
            continue
        epochs = min(side[seed]["epochs"] for side in (low, full) for seed in seeds)
        cells = [scores([best_until(side[seed], epochs) for seed in seeds]) for side in (full, low)]
        name = f"{setting[0]}, {name_of(setting[1])}"
        rows.append([name, len(seeds), epochs, *cells, gaps(low, full, epochs)])
    header = ["model, batches", "seeds", "epochs", "fp32 HR, NDCG", "bf16 HR, NDCG"]
    header.append("bf16 minus fp32, NDCG, seed by seed")
    return f"bf16 and fp32, paired seeds, test part:\n\n{table(header, rows)}"


def of_peers(peers: list[Run]) -> str:
    """One row a peer: its best epoch by validation, to the end."""
    rows = []
    for peer in peers:
        curve = peer["curve"]
        pace = curve[CLOCK][-1] / curve["epoch"][-1]
        best = best_until(peer)
        name = f"{PEER_NAMES[peer['peer']]}, {peer['model']}"
        rows.append([name, f"{pace:.2f}", scores([best]), curve["epoch"][-1], best["epoch"] if best else "–"])
    return table(["peer", "s / epoch", "to the end", "epochs", "best epoch"], rows)


def draw(runs: Runs, peers: list[Run], path: Path) -> None:
    """NDCG@10 of the test part over seconds of training, one panel a model; the peers beside SASRec."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(model for model, _ in runs))
    figure = Figure(figsize=(5 * len(models), 4.2), layout="constrained")
    for panel, model in enumerate(models, start=1):
        axis = figure.add_subplot(1, len(models), panel)
        for setting in of_model(runs, model):
            seeds = runs[setting]
            pace = epoch_seconds(seeds)
            curves = [dict(zip(r["curve"]["epoch"], r["curve"]["test NDCG@10"], strict=True)) for r in seeds.values()]
            shared = sorted(set.intersection(*map(set, curves)))
            points = [[curve[epoch] for curve in curves] for epoch in shared]
            times, means = [epoch * pace for epoch in shared], [statistics.mean(values) for values in points]
            (line,) = axis.plot(times, means, "-", lw=1.5, label=f"fastseq, {name_of(setting[1])}")
            axis.fill_between(times, [*map(min, points)], [*map(max, points)], color=line.get_color(), alpha=0.15, lw=0)
        for peer in peers if model == "SASRec" else ():
            style = {"warprec": "k--", "rectools": "k:", "recbole": "k-."}[peer["peer"]]
            axis.plot(peer["curve"][CLOCK], peer["curve"]["test NDCG@10"], style, label=PEER_NAMES[peer["peer"]])
        axis.set(xscale="log", title=model, xlabel="CPU seconds of training", ylabel="NDCG@10, test part")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    figure.savefig(path, format="png", dpi=100)


def report(args: argparse.Namespace) -> None:
    runs, bf16, peers = read(args.results)
    print(tables(runs))
    if bf16:
        print(precisions(runs, bf16))
    if peers:
        print(f"\n{of_peers(peers)}")
    if args.figure is not None:
        draw(runs, peers, args.figure)


def main() -> None:
    own_process()  # before torch
    from fastseq.training.options import PRECISIONS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    added = commands.add_parser("train", help="the runs, resumable")
    added.set_defaults(run=study)
    added.add_argument("--data", type=Path, required=True, help="interactions in any format fastseq reads")
    added.add_argument("--out", type=Path, required=True, help="JSON lines; runs it holds are not repeated")
    added.add_argument("--models", nargs="+", default=list(PARAMS), choices=list(PARAMS))
    added.add_argument("--batches", nargs="+", help="strides, or 'L', 'per-target'; default: L, L/2, 1 and per-target")
    added.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    added.add_argument("--epochs", type=int, help=f"default, shared and single sequences: {EPOCHS}")
    added.add_argument("--precision", default="fp32", choices=PRECISIONS)
    added.add_argument("--threads", type=int, help="default: torch's")
    added = commands.add_parser("report", help="Markdown tables, and the figure")
    added.set_defaults(run=report)
    added.add_argument("results", type=Path, nargs="+", help="JSON lines")
    added.add_argument("--figure", type=Path, help="PNG to draw")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
