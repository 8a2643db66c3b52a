"""fastseq beside a peer: WarpRec 2.2.8, RecTools 0.19 (SASRec alone) or RecBole 1.2.1.

    make peers    # once: .venv-warprec, .venv-rectools and .venv-recbole, each with the same torch
    python -m benchmarks.peers --peer warprec --model SASRec --data FILE --max-len 200
    python -m benchmarks.peers --peer rectools --data ml-100k.inter --epochs 25 --out FILE    # ranking quality

Throughput: each round measures the peer, then fastseq, both in a fresh process. WarpRec and RecBole: their own loader
and their own training step on a few batches. RecTools: SASRecModel.fit. Targets of a step over the median step, loading
included, the first left out. Nothing else should run on the machine.

Ranking quality: the peer trains on fastseq's split in the sizes of quality.py, whose report reads the file. After every
epoch it scores the whole catalogue, and fastseq.training.evaluate ranks these scores: positions, filter, ties and
metrics are the same for all. Seconds are those of the steps and their loading, by two clocks: the process's CPU time;
and on the wall, the median step times their number, so that pauses of a busy machine count little.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import quality
from benchmarks.measure import ROOT, append, ratios, records, spread, train_throughput
from fastseq._process import SPIN_COUNT
from fastseq.data import leave_one_out, read_interactions
from fastseq.data.split import Split
from fastseq.models import MODELS
from fastseq.training import evaluate
from fastseq.training.options import PRECISIONS
from fastseq.training.throughput import everything, reference_params, versions

SEED = 1  # of the peer
PER_TARGET = "per-target"  # WarpRec's own batches: one sequence per target, float32
SPEED_BATCH = 256  # targets, or sequences (RecTools)
QUALITY_BATCH = 12  # sequences (RecTools): about as many targets as the batches of the others


@contextmanager
def job(args: argparse.Namespace, split: Split, **work: Any) -> Iterator[tuple[list[Any], Path]]:
    """The command that starts the peer on the training part of ``split``, and the folder of what it is given."""
    data = split.interactions
    arrays = {"train_start": data.offsets[:-1], "train_stop": split.train_stop}
    for name in ("validation", "test"):
        if len(part := split.part(name)):
            kept = {"users": part.users, "start": part.history_start, "stop": part.history_stop}
            arrays |= {f"{name}_{key}": value for key, value in kept.items()}
    about = {"peer": args.peer, "model": args.model, "seed": SEED, "every": args.peer_every} | work
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "split.npz", items=data.items, n_items=data.n_items, **arrays)
        (folder / "job.json").write_text(json.dumps(about))
        yield [args.peer_python, Path(__file__).with_name("peer_worker.py"), folder], folder


class StoredScores:
    """A scorer for fastseq.training.evaluate that has every score already: float32 [users, items]."""

    def __init__(self, users: Any, scores: Any) -> None:
        self.rows = {int(user): row for row, user in enumerate(users)}
        self.scores = torch.from_numpy(scores)

    def score(self, users: Any, items: Any, offsets: Any) -> Any:
        """Rows of the stored table."""
        return self.scores[[self.rows[int(user)] for user in users]].clone()


def curve(args: argparse.Namespace) -> dict[str, Any]:
    """Trains the peer with the sizes of quality.py and ranks what it scores after every epoch."""
    split = leave_one_out(read_interactions(args.data))
    params = quality.COMMON | quality.PARAMS[args.model] | {"neg_samples": 1, "epochs": args.epochs}
    sequences = args.peer == "rectools"
    params["batch_size"] = args.peer_batch_size or (QUALITY_BATCH if sequences else params["batch_size"])
    points: dict[str, list[float]] = {"epoch": [], "cpu_seconds": [], "wall_seconds": []}
    # As fastseq's own: waiting must not count as CPU time.
    with job(args, split, params=params, epochs=args.epochs) as (command, folder):
        for told in records(command, GOMP_SPINCOUNT=SPIN_COUNT):
            points["epoch"].append(told["epoch"])
            for clock in ("cpu_seconds", "wall_seconds"):
                points[clock].append(round((points[clock] or [0.0])[-1] + told[clock], 2))
            scores = np.load(folder / f"{told['epoch']}.npz")
            for part in ("validation", "test"):
                scorer = StoredScores(split.part(part).users, scores[part])
                quality.add_scores(points, evaluate(scorer, split, part, mask_seen="history", coverage=False), part)
            (folder / f"{told['epoch']}.npz").unlink()
            print(args.peer, told["epoch"], points["test NDCG@10"][-1], file=sys.stderr, flush=True)
    about = {"kind": "peer", "peer": args.peer, "model": args.model, "data": args.data.name, "seed": SEED}
    about["batch_size"] = f"{params['batch_size']} sequences" if sequences else params["batch_size"]
    return about | {"curve": points, "versions": versions()}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of peer and fastseq in turn; medians, extremes, and the ratio round by round."""
    params = reference_params(args.model, args.max_len) | {"batch_size": args.peer_batch_size or SPEED_BATCH}
    peer: list[dict[str, Any]] = []
    own: dict[str, list[dict[str, Any]]] = {variant: [] for variant in args.variants}
    work = {"params": params, "epochs": 1, "batches": args.peer_batches}
    with job(args, everything(read_interactions(args.data)), **work) as (command, _):
        for _ in range(args.rounds):
            peer += records(command)
            for variant, runs in own.items():
                kind = ["--per-target"] if variant == PER_TARGET else ["--precision", variant]
                runs.append(train_throughput(args.model, args.data, args.max_len, "--seconds", args.seconds, *kind))
    theirs = [run["targets_per_s"] for run in peer]
    sides = {}
    for variant, runs in own.items():
        ours = [run["targets_per_s"] for run in runs]
        about = {key: runs[0][key] for key in ("batch_size", "stride")}
        about["peak_rss_mb"] = max(run["peak_rss_mb"] for run in runs)
        sides[variant] = spread(ours) | {"ratio": ratios(ours, theirs)} | about
    side = {"name": args.peer} | spread(theirs) | {"batch_size": params["batch_size"]}
    about = {"model": args.model, "data": args.data.name, "max_len": args.max_len, "rounds": args.rounds}
    return about | {"peer": side, "fastseq": sides, "versions": versions()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, choices=quality.PEER_NAMES)
    parser.add_argument("--peer-python", help="interpreter of the peer's environment; default: what `make peers` made")
    parser.add_argument("--model", default="SASRec", choices=MODELS)
    parser.add_argument("--data", type=Path, required=True, help="interactions in any format fastseq reads")
    parser.add_argument("--max-len", type=int, help="of throughput")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each fastseq measurement")
    variants = (*PRECISIONS, PER_TARGET)
    parser.add_argument("--variants", nargs="+", choices=variants, default=["fp32"], help="of fastseq, in each round")
    sizes = f"targets, or sequences (RecTools); default {SPEED_BATCH}, with --epochs quality.py's ({QUALITY_BATCH})"
    parser.add_argument("--peer-batch-size", type=int, help=sizes)
    parser.add_argument("--peer-batches", type=int, default=4, help="WarpRec, RecBole: batches measured")
    parser.add_argument("--peer-every", type=int, default=1, help="RecTools: trains on every n-th user")
    parser.add_argument("--epochs", type=int, help="train the peer that long and rank")
    parser.add_argument("--out", type=Path, help="with --epochs: the file that gets one JSON line more")
    args = parser.parse_args()
    if args.peer == "rectools" and args.model != "SASRec":
        parser.error("RecTools has SASRec alone")
    for name in ("rounds", "epochs", "peer_batch_size"):
        if (count := getattr(args, name)) is not None and count < 1:
            parser.error(f"--{name.replace('_', '-')} is {count}, expected 1 or more")
    if (args.out is None) != (args.epochs is None):
        parser.error("--epochs and --out go together: how long the peer trains, and the file of its curve")
    if args.out is None and args.max_len is None:
        parser.error("--max-len is missing: the longest history of both sides")
    if not args.data.is_file():
        parser.error(f"--data is {args.data}, which is no file")
    args.peer_python = args.peer_python or str(ROOT / f".venv-{args.peer}" / "bin" / "python")
    if not Path(args.peer_python).exists():
        parser.error(f"{args.peer_python} does not exist: `make peers` makes it, or name another with --peer-python")
    return args


def main() -> None:
    args = arguments()
    if args.out is not None:
        append(args.out, curve(args))
    else:
        print(json.dumps(compare(args)))


if __name__ == "__main__":
    main()
