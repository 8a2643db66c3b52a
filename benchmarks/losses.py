"""What a loss is worth: score, time and memory of every loss, kind and number of negatives.

    python -m benchmarks.losses train --data s3_beauty.txt --format user_sequences --epochs 24 --out FILE
    python -m benchmarks.losses train --data ml-1m.txt --epochs 8 --dropout 0.2 --out FILE
    python -m benchmarks.losses report FILE --figure docs/losses.png

One SASRec (d = 64, 1 layer, 1 head, L = 50, 1,024 targets a batch, a learning rate that falls in a line from 1e-3 to
0), the same first weights and batches in all runs: they differ in the loss and its negatives alone. Leave-one-out, the
whole catalogue, seen items left out; a run's score is the test score of its best epoch by validation NDCG@10. Each run
has a process of its own. Runs that the file already holds are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.measure import append, records, table
from fastseq._process import own_process

PARAMS: dict[str, Any] = {"embedding_size": 64, "n_layers": 1, "n_heads": 1, "inner_size": 64, "weight_decay": 0.0}
PARAMS |= {"initializer_range": 0.02, "max_seq_len": 50, "batch_size": 1024, "learning_rate": 1e-3}
VALIDATIONS = 8  # of a run
METRICS = ("HR@10", "NDCG@10")

Setting = tuple[str, str, int]  # loss, kind of negatives, how many

PER_TARGET, SHARED, UNSEEN = "per_target", "shared", "shared_unseen"
SETTINGS: list[Setting] = [("cross_entropy", PER_TARGET, 0), ("bpr", PER_TARGET, 1)]
for _loss in ("bce", "gbce", "sampled_softmax"):
    SETTINGS += [(_loss, PER_TARGET, n) for n in (1, 16, 256)]
    SETTINGS += [(_loss, SHARED, n) for n in (16, 256, 3000)]
SETTINGS += [("sampled_softmax", UNSEEN, n) for n in (16, 256, 3000)]


def setting_of(record: dict[str, Any]) -> Setting:
    return record["loss"], record["negatives"], record["neg_samples"]


def one(args: argparse.Namespace) -> None:
    """Trains with one setting and prints its record."""
    import torch

    from fastseq._process import peak_rss_mb
    from fastseq.data import leave_one_out, read_interactions
    from fastseq.models import SASRec
    from fastseq.training import Trainer, TrainingOptions, evaluate
    from fastseq.training.throughput import versions

    torch.set_num_threads(args.threads)
    loss, negatives, number = args.setting.split(",")
    data = read_interactions(args.data, format=args.format)
    split = leave_one_out(data)
    params = PARAMS | {"loss": loss, "negatives": negatives, "neg_samples": int(number), "epochs": args.epochs}
    params |= {"dropout_prob": args.dropout, "attn_dropout_prob": 0.2}
    model = SASRec(params, {"n_users": data.n_users, "n_items": data.n_items}, seed=args.seed)
    options = TrainingOptions(
        seed=args.seed, schedule="linear", validate_every=-(-args.epochs // VALIDATIONS), mask_seen="history"
    )
    before = peak_rss_mb()
    result = Trainer(model, split, options).fit()
    peak = peak_rss_mb()
    metrics = evaluate(model, split, "test", mask_seen="history", coverage=False).metrics
    print(
        json.dumps(
            {"loss": loss, "negatives": negatives, "neg_samples": int(number), "seed": args.seed}
            | {"data": args.data.name, "epochs": args.epochs, "dropout": args.dropout, "threads": args.threads}
            | {"best_epoch": result.best_epoch, "validation NDCG@10": result.best_value}
            | {f"test {name}": metrics[name] for name in METRICS}
            | {"epoch_seconds": result.seconds / args.epochs, "peak_mb": peak, "peak_mb_before": before}
            | {"date": date.today().isoformat(), "versions": versions()}
        )
    )


def train(args: argparse.Namespace) -> None:
    """Every setting that the file lacks, each in a process of its own."""
    stored = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(setting_of(r), r["seed"]) for r in stored if r["data"] == args.data.name and r["epochs"] == args.epochs}
    for setting in SETTINGS:
        if (setting, args.seed) in done or (args.losses and setting[0] not in args.losses):
            continue
        command = [sys.executable, "-m", "benchmarks.losses", "one", *sys.argv[2:]]
        for record in records([*command, "--setting", ",".join(map(str, setting))]):
            append(args.out, record)
            print(*setting, f"NDCG@10 {record['test NDCG@10']:.4f}, {record['epoch_seconds']:.2f} s", flush=True)


def by_data(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The file's records by the data set's name, in the order of ``SETTINGS``."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        runs.setdefault(Path(record["data"]).stem, []).append(record)
    for records_ in runs.values():
        records_.sort(key=lambda record: SETTINGS.index(setting_of(record)))
    return runs


def name_of(setting: Setting) -> str:
    loss, negatives, number = setting
    return f"{loss}, {number:,} {negatives}" if number else loss


def tables(runs: dict[str, list[dict[str, Any]]]) -> str:
    """One table a data set."""
    header = ["loss, negatives", "validation NDCG@10", "test HR@10", "NDCG@10", "best epoch", "s / epoch", "peak MB"]
    out = []
    for data, found in runs.items():
        rows = []
        for r in found:
            scores = [f"{r[key]:.4f}".lstrip("0") for key in ("validation NDCG@10", "test HR@10", "test NDCG@10")]
            best = f"{r['best_epoch']} of {r['epochs']}"
            rows.append([name_of(setting_of(r)), *scores, best, f"{r['epoch_seconds']:.1f}", f"{r['peak_mb']:.0f}"])
        out += [f"**{data}**", "", table(header, rows), ""]
    return "\n".join(out)


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Test NDCG@10 and seconds of an epoch over the number of negatives; a row of panels a data set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4 * len(runs)), layout="constrained")
    axes = figure.subplots(len(runs), 2, squeeze=False)
    colors = {"bce": "C0", "gbce": "C1", "sampled_softmax": "C2", "cross_entropy": "k", "bpr": "C3"}
    styles = {PER_TARGET: "o-", SHARED: "s--", UNSEEN: "^:"}
    for (data, found), (score, pace) in zip(runs.items(), axes, strict=True):
        for axis, key in ((score, "test NDCG@10"), (pace, "epoch_seconds")):
            for loss, negatives in dict.fromkeys(setting[:2] for setting in SETTINGS):
                line = [r for r in found if setting_of(r)[:2] == (loss, negatives)]
                if line and loss == "cross_entropy":
                    axis.axhline(line[0][key], color="k", lw=1, ls="-.", label="cross_entropy, the whole catalogue")
                elif line:
                    numbers, values = [r["neg_samples"] for r in line], [r[key] for r in line]
                    label = f"{loss}, {negatives}"
                    axis.plot(numbers, values, styles[negatives], color=colors[loss], ms=5, lw=1.3, label=label)
            axis.set(xscale="log", xlabel="negatives", ylabel=key.replace("epoch_seconds", "seconds an epoch"))
            axis.set_title(data)
            axis.grid(alpha=0.3)
        pace.set_yscale("log")
    axes[0][0].legend(fontsize=7)
    figure.savefig(path, format="png", dpi=100)


def report(args: argparse.Namespace) -> None:
    runs = by_data(args.results)
    print(tables(runs))
    if args.figure is not None:
        draw(runs, args.figure)


def main() -> None:
    own_process()  # before torch
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, call, about in (("train", train, "the runs, resumable"), ("one", one, "one of them")):
        added = commands.add_parser(name, help=about)
        added.set_defaults(run=call)
        added.add_argument("--data", type=Path, required=True, help="interactions in any format fastseq reads")
        added.add_argument("--format", help="of the data, where its name and first lines do not tell")
        added.add_argument("--out", type=Path, required=name == "train", help="JSON lines")
        added.add_argument("--epochs", type=int, default=24)
        added.add_argument("--dropout", type=float, default=0.5, help="the embedding's; attention has 0.2")
        added.add_argument("--seed", type=int, default=1)
        added.add_argument(
            "--losses", nargs="+", choices=list(dict.fromkeys(s[0] for s in SETTINGS)), help="these alone"
        )
        added.add_argument("--threads", type=int, default=1)
        if name == "one":
            added.add_argument("--setting", required=True, help="loss,negatives,number")
    added = commands.add_parser("report", help="Markdown tables, and the figure")
    added.set_defaults(run=report)
    added.add_argument("results", type=Path, help="JSON lines")
    added.add_argument("--figure", type=Path, help="PNG to draw")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
