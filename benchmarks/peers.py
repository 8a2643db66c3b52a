"""fastseq beside a peer, in turn, in one run: throughput of both sides and their ratio.

    make peers    # once: .venv-warprec, .venv-rectools and .venv-recbole, each with the same torch
    python benchmarks/peers.py --peer warprec --model SASRec --data FILE --max-len 200
    python benchmarks/peers.py --peer rectools --model SASRec --data FILE --max-len 200
    python benchmarks/peers.py --peer recbole --model GRU4Rec --data FILE --max-len 50 --epochs 10

--peer-python is an interpreter of another environment that has the peer (WarpRec 2.2.8; RecTools 0.19; RecBole 1.2.1).
Each round measures the peer, then fastseq, both in a fresh process. WarpRec and RecBole: their own loader and their
own training step on a few batches, medians, added up. RecTools: optimizer steps of SASRecModel.fit between the first
batch and the last, so its setup does not count. Nothing else should run on the machine.

--epochs also trains both sides that long, in the sizes of stride_quality.py, and adds the NDCG@10 of each on the test
part of fastseq's split (peers_quality.py), fastseq on shared windows and on one sequence per target. RecTools then
trains with batches of --quality-batch-size sequences, as peers_quality.py does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def sequences(path: Path) -> list[list[int]]:
    """One list of item numbers per user, from `user item` lines or one user a line."""
    rows = [[int(word) for word in line.split()] for line in path.read_text().splitlines() if line.strip()]
    if all(len(row) == 2 for row in rows):
        users: dict[int, list[int]] = {}
        for user, item in rows:
            users.setdefault(user, []).append(item)
        return list(users.values())
    return rows


def measure_warprec(chosen: argparse.Namespace) -> dict[str, Any]:
    """Runs in the peer's environment: WarpRec's loader and training step."""
    import numpy as np
    import scipy.sparse as sp
    import torch
    from torch.utils.data import DataLoader
    from warprec.data.entities.train_structures.session_structures import SequentialDataset
    from warprec.recommenders.sequential_recommender.caser import Caser
    from warprec.recommenders.sequential_recommender.gru4rec import GRU4Rec
    from warprec.recommenders.sequential_recommender.sasrec import SASRec

    torch.manual_seed(0)
    histories = sequences(chosen.data)
    lengths = np.array([len(h) for h in histories])
    users = np.repeat(np.arange(len(histories)), lengths)
    names, items = np.unique(np.concatenate([np.array(h) for h in histories]), return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    seen = sp.csr_matrix((np.ones(len(items)), (users, items)), shape=(len(histories), len(names)))
    seen.sum_duplicates()
    seen.sort_indices()
    targets = np.setdiff1d(np.arange(len(items)), offsets[:-1])
    params = json.loads(chosen.params) | {"batch_size": chosen.peer_batch_size, "max_seq_len": chosen.max_len}
    data = SequentialDataset(
        items, users, offsets, targets, seen, chosen.max_len, params["neg_samples"], len(names),
        include_user_id=chosen.model == "Caser",
    )  # fmt: skip
    loader = iter(DataLoader(data, batch_size=chosen.peer_batch_size, shuffle=True))
    batches, loading = [], []
    for _ in range(chosen.peer_batches):
        start = time.perf_counter()
        batches.append(next(loader))
        loading.append(time.perf_counter() - start)
    kinds = {"SASRec": SASRec, "GRU4Rec": GRU4Rec, "Caser": Caser}
    model = kinds[chosen.model](params, {"n_users": len(histories), "n_items": len(names)})
    model.log = lambda *a, **k: None
    optimizer = model.configure_optimizers()
    model.train()
    steps = []
    for place, batch in enumerate(batches):
        start = time.perf_counter()
        optimizer.zero_grad()
        model.training_step(batch, place).backward()
        optimizer.step()
        steps.append(time.perf_counter() - start)
    seconds = statistics.median(loading[1:] or loading) + statistics.median(steps[1:] or steps)
    return {"targets_per_s": chosen.peer_batch_size / seconds, "batch_size": chosen.peer_batch_size}


def measure_recbole(chosen: argparse.Namespace) -> dict[str, Any]:
    """Runs in the peer's environment: RecBole's loader and training step."""
    import torch
    from recbole_peer import prepare

    params = json.loads(chosen.params) | {"batch_size": chosen.peer_batch_size, "max_seq_len": chosen.max_len}
    loader, model, _ = prepare(sequences(chosen.data), chosen.model, params, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=params["learning_rate"])
    model.train()
    batches, loading, steps = iter(loader), [], []
    for _ in range(chosen.peer_batches):
        start = time.perf_counter()
        batch = next(batches)
        loading.append(time.perf_counter() - start)
        start = time.perf_counter()
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
        steps.append(time.perf_counter() - start)
    seconds = statistics.median(loading[1:] or loading) + statistics.median(steps[1:] or steps)
    return {"targets_per_s": chosen.peer_batch_size / seconds, "batch_size": chosen.peer_batch_size}


def measure_rectools(chosen: argparse.Namespace) -> dict[str, Any]:
    """Runs in the peer's environment: optimizer steps of RecTools' SASRecModel.fit."""
    import logging
    import warnings

    import pandas as pd
    from pytorch_lightning import Callback, Trainer
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    histories = sequences(chosen.data)[:: chosen.peer_every]
    rows = [(user, item, place) for user, h in enumerate(histories) for place, item in enumerate(h)]
    frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Datetime])
    frame[Columns.Weight] = 1.0
    frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime], unit="s")

    ends: list[tuple[float, int]] = []  # of each batch: when it ended, how many targets it had

    class Clock(Callback):
        """Notes every batch. fit() copies the trainer, so the notes are kept outside."""

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            ends.append((time.perf_counter(), int((batch["y"] != 0).sum())))

    def trainer() -> Any:
        return Trainer(
            max_epochs=1, callbacks=[Clock()], logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip

    batch_size = chosen.peer_batch_size
    model = SASRecModel(
        n_factors=128, n_blocks=2, n_heads=4, session_max_len=chosen.max_len, loss=chosen.peer_loss, n_negatives=1,
        epochs=1, batch_size=batch_size, dropout_rate=0.3, lr=1e-3, verbose=0, get_trainer_func=trainer,
    )  # fmt: skip
    model.fit(Dataset.construct(frame))
    seconds = ends[-1][0] - ends[0][0]
    return {"targets_per_s": sum(n for _, n in ends[1:]) / seconds, "batch_size": f"{batch_size} sequences"}


QUALITY_BATCH = 12  # sequences of RecTools with --epochs: about as many targets as the batches of the others
PER_TARGET = "per-target"  # WarpRec's own batches: one sequence per target, float32


def measure_fastseq(chosen: argparse.Namespace, variant: str) -> dict[str, Any]:
    """fastseq's own throughput, in a fresh process, as the precision or as "per-target"."""
    command = [sys.executable, str(Path(__file__).with_name("train_throughput.py")), "--json"]
    command += ["--model", chosen.model, "--data", str(chosen.data), "--max-len", str(chosen.max_len)]
    command += ["--batch-size", str(chosen.batch_size), "--seconds", str(chosen.seconds)]
    command += ["--per-target"] if variant == PER_TARGET else ["--precision", variant]
    command += ["--stride", str(chosen.stride)] if chosen.stride else []
    command += ["--loss", chosen.loss] if chosen.loss else []
    return _last_json(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _last_json(text: str) -> dict[str, Any]:
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def rank(chosen: argparse.Namespace) -> dict[str, Any]:
    """NDCG@10 on the test part after ``epochs`` of the peer, of fastseq's windows and of its one target a sequence."""
    import peers_quality
    import stride_quality

    from fastseq.data import leave_one_out, read_interactions

    split = leave_one_out(read_interactions(chosen.data))
    # Not the batch that is timed: RecTools' 256 sequences hold far more targets than the 512 of the others.
    size = chosen.quality_batch_size or QUALITY_BATCH
    peer = peers_quality.measure(argparse.Namespace(**vars(chosen) | {"peer_batch_size": size}))
    curves = {chosen.peer: peer["curve"]}
    for batches in (stride_quality.PARAMS[chosen.model]["max_seq_len"], stride_quality.PER_TARGET):
        run = stride_quality.train(chosen.model, batches, chosen.seed, split, chosen.epochs, chosen.epochs, "fp32")
        curves[f"fastseq, {'per target' if batches == stride_quality.PER_TARGET else f'stride {batches}'}"] = run[
            "curve"
        ]
    sizes = stride_quality.COMMON | stride_quality.PARAMS[chosen.model]
    return {
        "epochs": chosen.epochs,
        "seed": chosen.seed,
        "params": sizes,
        "batch_size": {chosen.peer: peer["batch_size"], "fastseq": sizes["batch_size"]},
        "NDCG@10": {side: curve["test NDCG@10"][-1] for side, curve in curves.items()},
    }


def compare(chosen: argparse.Namespace) -> dict[str, Any]:
    """Rounds of peer and fastseq in turn; medians, extremes, and the ratio round by round."""
    from fastseq.training.throughput import reference_params, versions

    params = reference_params(chosen.model, chosen.max_len)
    peer: list[dict[str, Any]] = []
    own: dict[str, list[dict[str, Any]]] = {variant: [] for variant in chosen.variants}
    command = [chosen.peer_python, __file__, *sys.argv[1:], "--worker", "--params", json.dumps(params)]
    command += ["--data", str(chosen.lines)]
    for _ in range(chosen.rounds):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"the peer failed:\n{done.stderr[-2000:]}")
        peer.append(_last_json(done.stdout))
        for variant, measured in own.items():
            measured.append(measure_fastseq(chosen, variant))
    speeds = [x["targets_per_s"] for x in peer]
    return {
        "model": chosen.model,
        "data": chosen.data.name,
        "max_len": chosen.max_len,
        "rounds": chosen.rounds,
        "peer": {"name": chosen.peer} | spread(speeds) | {"batch_size": peer[0]["batch_size"]},
        "fastseq": {
            variant: spread([x["targets_per_s"] for x in measured])
            | {"ratio": spread([x["targets_per_s"] / y for x, y in zip(measured, speeds, strict=True)])}
            | {key: measured[0][key] for key in ("batch_size", "stride")}
            | {"peak_rss_mb": max(x["peak_rss_mb"] for x in measured)}
            for variant, measured in own.items()
        },
        **({"quality": rank(chosen)} if chosen.epochs else {}),
        "versions": versions(),
    }


def write_lines(data: Path, folder: Path) -> Path:
    """The data as `user item` lines, which a peer's environment can read without fastseq."""
    from fastseq.data import read_interactions

    interactions = read_interactions(data)
    path = folder / "data.txt"
    with path.open("w") as file:
        for user, (start, stop) in enumerate(pairwise(interactions.offsets.tolist())):
            file.writelines(f"{user} {item}\n" for item in interactions.items[start:stop].tolist())
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, choices=("warprec", "rectools", "recbole"))
    parser.add_argument("--peer-python", help="interpreter of the peer's environment; default: what `make peers` made")
    parser.add_argument("--model", default="SASRec", choices=("SASRec", "GRU4Rec", "Caser"))
    parser.add_argument("--data", type=Path, required=True, help="interactions in any format fastseq reads")
    parser.add_argument("--max-len", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each fastseq measurement")
    parser.add_argument("--batch-size", type=int, default=2048, help="fastseq's, in targets")
    parser.add_argument("--stride", type=int)
    parser.add_argument("--loss", choices=("bpr", "bce", "gbce", "sampled_softmax", "cross_entropy"))
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=("fp32", "bf16", PER_TARGET),
        default=["fp32"],
        help="of fastseq, in each round",
    )
    parser.add_argument("--peer-batch-size", type=int, default=256, help="targets, or sequences (RecTools)")
    parser.add_argument("--peer-batches", type=int, default=4, help="WarpRec, RecBole: batches measured")
    parser.add_argument("--peer-loss", default="BCE", help="RecTools: BCE, gBCE or softmax")
    parser.add_argument("--peer-every", type=int, default=1, help="RecTools: trains on every n-th user")
    parser.add_argument("--epochs", type=int, help="also train that long and rank")
    parser.add_argument("--seed", type=int, default=1, help="with --epochs")
    parser.add_argument(
        "--quality-batch-size", type=int, help=f"RecTools with --epochs: sequences (default {QUALITY_BATCH})"
    )
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--params", default="{}", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        measure = {"warprec": measure_warprec, "rectools": measure_rectools, "recbole": measure_recbole}[chosen.peer]
        print(json.dumps(measure(chosen)))
        return
    if chosen.peer == "rectools" and chosen.model != "SASRec":
        parser.error("RecTools has SASRec alone")
    if chosen.quality_batch_size is not None and (chosen.peer != "rectools" or chosen.epochs is None):
        parser.error("--quality-batch-size is for RecTools with --epochs: the others' batch is stride_quality.py's")
    for name in ("rounds", "epochs", "quality_batch_size"):
        if (count := getattr(chosen, name)) is not None and count < 1:
            parser.error(f"--{name.replace('_', '-')} is {count}, expected 1 or more")
    if not chosen.data.is_file():
        parser.error(f"--data is {chosen.data}, which is no file")
    chosen.peer_python = chosen.peer_python or str(ROOT / f".venv-{chosen.peer}" / "bin" / "python")
    if not Path(chosen.peer_python).exists():
        parser.error(f"{chosen.peer_python} does not exist: `make peers` makes it, or name another with --peer-python")
    with tempfile.TemporaryDirectory() as folder:
        chosen.lines = write_lines(chosen.data, Path(folder))
        print(json.dumps(compare(chosen), indent=None if chosen.json else 2))


if __name__ == "__main__":
    main()
