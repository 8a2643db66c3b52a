"""Ranking quality over training time of a peer's model, epoch by epoch: one JSON line.

    python benchmarks/peers_quality.py --peer warprec --peer-python P --data ml-100k.inter --epochs 5 --out FILE
    python benchmarks/peers_quality.py --peer rectools --peer-python P --data ml-100k.inter --epochs 60 --out FILE

P is an interpreter of an environment that has the peer (WarpRec 2.2.8; RecTools 0.19; RecBole 1.2.1). The peer trains
on the training part of fastseq's split, with the sizes of benchmarks/stride_quality.py, and scores the whole catalogue
after every epoch; fastseq.training.evaluate ranks these scores: positions, filter, ties and metrics are the same for
all.

WarpRec and RecBole: their own dataset, model and loss, one sequence per target. RecTools, SASRec alone:
SASRecModel.fit, BCE with one negative, the last L + 1 events of each user. Seconds are those of the steps and their
loading, by two clocks: the process's CPU time; and on the wall, the median step times their number, so that pauses of
a busy machine count little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Score = Callable[[list[Any], Any], Any]  # histories and their users to scores [histories, items]
Parts = dict[str, tuple[list[Any], Any]]  # the histories of the two held-out parts, and whose they are


def report(epoch: int, steps: list[float], cpu: float, score: Score, parts: Parts, folder: Path) -> None:
    """One line to the parent, and the scores of every history into a file."""
    import numpy as np

    np.savez(folder / f"{epoch}.npz", **{part: score(*wanted) for part, wanted in parts.items()})
    line = {"epoch": epoch, "cpu_seconds": cpu, "wall_seconds": statistics.median(steps) * len(steps)}
    print(json.dumps(line), flush=True)


def train_warprec(chosen: argparse.Namespace, params: dict[str, Any], folder: Path) -> None:
    """Runs in the peer's environment."""
    import numpy as np
    import scipy.sparse as sp
    import torch
    from torch.utils.data import DataLoader
    from warprec.data.entities.train_structures.session_structures import SequentialDataset
    from warprec.recommenders import sequential_recommender as models

    histories, parts, n_items = load(folder)
    longest = params["max_seq_len"]
    lengths = np.array([len(h) for h in histories])
    users, items = np.repeat(np.arange(len(histories)), lengths), np.concatenate(histories)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    seen = sp.csr_matrix((np.ones(len(items)), (users, items)), shape=(len(histories), n_items))
    seen.sum_duplicates()
    seen.sort_indices()
    targets = np.setdiff1d(np.arange(len(items)), offsets[:-1])
    data = SequentialDataset(
        items, users, offsets, targets, seen, longest, params["neg_samples"], n_items, seed=chosen.seed,
        include_user_id=chosen.model == "Caser",
    )  # fmt: skip
    loader = DataLoader(data, batch_size=params["batch_size"], shuffle=True)
    info = {"n_users": len(histories), "n_items": n_items}
    model = getattr(models, chosen.model)(params, info, seed=chosen.seed)
    model.log = lambda *a, **k: None
    optimizer = model.configure_optimizers()

    def score(wanted: list[Any], users: Any) -> Any:
        model.eval()
        rows = []
        with torch.inference_mode():
            for first in range(0, len(wanted), 128):
                some = [torch.as_tensor(h[-longest:]) for h in wanted[first : first + 128]]
                padded = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=n_items)
                who, lengths = torch.as_tensor(users[first : first + 128]), torch.tensor([len(h) for h in some])
                rows.append(model.predict(user_indices=who, user_seq=padded, seq_len=lengths))
        return torch.cat(rows).numpy()

    epochs(chosen.epochs, model, loader, optimizer, lambda batch: model.training_step(batch, 0), score, parts, folder)


def epochs(
    count: int,
    model: Any,
    loader: Any,
    optimizer: Any,
    loss: Callable[[Any], Any],
    score: Score,
    parts: Parts,
    folder: Path,
) -> None:
    """The training loop of a peer whose own is in its trainer; reports every epoch."""
    for epoch in range(1, count + 1):
        model.train()
        steps, start, cpu = [], time.perf_counter(), time.process_time()
        for batch in loader:
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
            steps.append(time.perf_counter() - start)
            start = time.perf_counter()
        report(epoch, steps, time.process_time() - cpu, score, parts, folder)


def train_recbole(chosen: argparse.Namespace, params: dict[str, Any], folder: Path) -> None:
    """Runs in the peer's environment."""
    import numpy as np
    import torch
    from recbole.data.interaction import Interaction
    from recbole_peer import prepare

    histories, parts, n_items = load(folder)
    longest = params["max_seq_len"]
    loader, model, numbers = prepare(histories, chosen.model, params, chosen.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=params["learning_rate"])
    inner = np.zeros(n_items, np.int64)  # RecBole's number of each item; 0: never trained
    for item, number in numbers["item_id"].items():
        if number:
            inner[int(item)] = number
    trained = inner.nonzero()[0]
    user_numbers = numbers["user_id"]

    def score(wanted: list[Any], users: Any) -> Any:
        model.eval()
        found = np.full((len(wanted), n_items), -np.inf, np.float32)
        with torch.inference_mode():
            for first in range(0, len(wanted), 128):
                rows = range(first, min(first + 128, len(wanted)))
                x, lengths = torch.zeros(len(rows), longest, dtype=torch.long), torch.ones(len(rows), dtype=torch.long)
                for row, history in enumerate(wanted[first : first + 128]):
                    ids = inner[history[inner[history] > 0]][-longest:]
                    x[row, : len(ids)] = torch.as_tensor(ids)
                    lengths[row] = max(len(ids), 1)
                who = torch.tensor([user_numbers[str(user)] for user in users[first : first + 128]])
                columns = {"user_id": who, "item_id_list": x, "item_length": lengths}
                scores = model.full_sort_predict(Interaction(columns))
                found[rows.start : rows.stop, trained] = scores.view(len(rows), -1)[:, inner[trained]].numpy()
        return found

    epochs(chosen.epochs, model, loader, optimizer, model.calculate_loss, score, parts, folder)


def train_rectools(chosen: argparse.Namespace, params: dict[str, Any], folder: Path) -> None:
    """Runs in the peer's environment."""
    import logging
    import warnings

    import numpy as np
    import pandas as pd
    import torch
    from pytorch_lightning import Callback, Trainer, seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seed_everything(chosen.seed, verbose=False)
    histories, parts, n_items = load(folder)
    longest = params["max_seq_len"]
    rows = [(user, item, place) for user, h in enumerate(histories) for place, item in enumerate(h)]
    frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Datetime])
    frame[Columns.Weight] = 1.0
    frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime], unit="s")

    class AfterEpochs(Callback):
        """Times every batch and scores after every epoch. fit() copies the trainer, so nothing is kept in here."""

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            clock["mark"], clock["cpu"], clock["steps"] = time.perf_counter(), time.process_time(), []

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            now = time.perf_counter()
            clock["steps"].append(now - clock["mark"])
            clock["mark"] = now

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            cpu = time.process_time() - clock["cpu"]
            first = model.data_preparator.n_item_extra_tokens  # before them in the table: padding
            trained = model.data_preparator.item_id_map.external_ids[first:].astype(np.int64)
            inner = np.zeros(n_items, np.int64)
            inner[trained] = np.arange(first, first + len(trained))

            def score(wanted: list[Any], users: Any) -> Any:
                net = module.torch_model.eval()
                found = np.full((len(wanted), n_items), -np.inf, np.float32)  # never trained: no score
                x = torch.zeros(len(wanted), longest, dtype=torch.long)
                for row, history in enumerate(wanted):
                    ids = inner[history[inner[history] > 0]][-longest:]
                    x[row, longest - len(ids) :] = torch.as_tensor(ids)
                with torch.inference_mode():
                    table = net.item_model.get_all_embeddings()
                    last = torch.cat([net.encode_sessions({"x": some}, table)[:, -1] for some in x.split(128)])
                    found[:, trained] = (last @ table[first:].T).numpy()
                net.train()
                return found

            report(trainer.current_epoch + 1, clock["steps"], cpu, score, parts, folder)

    def trainer() -> Any:
        return Trainer(
            max_epochs=chosen.epochs, callbacks=[AfterEpochs()], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip

    clock: dict[str, Any] = {}
    model = SASRecModel(
        n_factors=params["embedding_size"], n_blocks=params["n_layers"], n_heads=params["n_heads"],
        session_max_len=longest, loss="BCE", n_negatives=1, epochs=chosen.epochs, batch_size=chosen.peer_batch_size,
        dropout_rate=params["dropout_prob"], lr=params["learning_rate"], verbose=0, get_trainer_func=trainer,
    )  # fmt: skip
    model.fit(Dataset.construct(frame))


def load(folder: Path) -> tuple[list[Any], Parts, int]:
    """The training part, the two held-out parts, and the number of items."""
    import numpy as np

    stored = np.load(folder / "split.npz")
    tape = stored["items"]

    def cut(name: str) -> list[Any]:
        return [tape[start:stop] for start, stop in zip(stored[f"{name}_start"], stored[f"{name}_stop"], strict=True)]

    parts = {part: (cut(part), stored[f"{part}_users"]) for part in ("validation", "test")}
    return cut("train"), parts, int(stored["n_items"])


class StoredScores:
    """A scorer for fastseq.training.evaluate that has every score already."""

    def __init__(self, users: Any, scores: Any) -> None:
        import torch

        self.rows = {int(user): row for row, user in enumerate(users)}
        self.scores = torch.from_numpy(scores)

    def score(self, users: Any, items: Any, offsets: Any) -> Any:
        """Rows of the stored table."""
        return self.scores[[self.rows[int(user)] for user in users]].clone()


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Starts the peer, ranks what it scores."""
    import numpy as np
    from stride_quality import COMMON, PARAMS  # the sizes that fastseq's own runs have

    from fastseq.data import leave_one_out, read_interactions
    from fastseq.training import evaluate
    from fastseq.training.throughput import versions

    split = leave_one_out(read_interactions(chosen.data))
    data = split.interactions
    params = COMMON | PARAMS[chosen.model] | {"neg_samples": 1, "epochs": chosen.epochs}
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bounds = {"train_start": data.offsets[:-1], "train_stop": split.train_stop}
        for part in ("validation", "test"):
            chosen_part = split.part(part)
            bounds |= {f"{part}_start": chosen_part.history_start, f"{part}_stop": chosen_part.history_stop}
            bounds[f"{part}_users"] = chosen_part.users
        np.savez(folder / "split.npz", items=data.items, n_items=data.n_items, **bounds)
        command = [chosen.peer_python, __file__, "--worker", name, "--params", json.dumps(params)]
        for key in ("peer", "peer_python", "model", "data", "epochs", "seed", "peer_batch_size"):
            command += [f"--{key.replace('_', '-')}", str(getattr(chosen, key))]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment.setdefault("GOMP_SPINCOUNT", "2000")  # as fastseq's own: waiting must not count as CPU time
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as peer:
            assert peer.stdout is not None
            for line in peer.stdout:
                if not line.startswith("{"):
                    continue
                told = json.loads(line)
                found.setdefault("epoch", []).append(told["epoch"])
                for key in ("cpu_seconds", "wall_seconds"):
                    before = found.setdefault(key, [0.0])
                    before.append(round(before[-1] + told[key], 2))
                scores = np.load(folder / f"{told['epoch']}.npz")
                for part in ("validation", "test"):
                    scorer = StoredScores(split.part(part).users, scores[part])
                    metrics = evaluate(scorer, split, part, coverage=False).metrics
                    for metric in ("HR@10", "NDCG@10"):
                        found.setdefault(f"{part} {metric}", []).append(round(metrics[metric], 5))
                (folder / f"{told['epoch']}.npz").unlink()
                print(chosen.peer, told["epoch"], found["test NDCG@10"][-1], file=sys.stderr, flush=True)
    if not found:
        sys.exit("the peer failed; see above")
    for key in ("cpu_seconds", "wall_seconds"):
        del found[key][0]
    return {
        "kind": "peer",
        "peer": chosen.peer,
        "model": chosen.model,
        "data": chosen.data.name,
        "seed": chosen.seed,
        "batch_size": params["batch_size"] if chosen.peer != "rectools" else f"{chosen.peer_batch_size} sequences",
        "curve": found,
        "versions": versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, choices=("warprec", "rectools", "recbole"))
    parser.add_argument("--model", default="SASRec", choices=("SASRec", "GRU4Rec", "Caser"))
    parser.add_argument("--peer-python", required=True, help="interpreter of the peer's environment")
    parser.add_argument("--data", type=Path, required=True, help="interactions in any format fastseq reads")
    parser.add_argument("--out", type=Path, help="JSON lines; one is added")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peer-batch-size", type=int, default=12, help="RecTools, in sequences")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--params", default="{}", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        train = {"warprec": train_warprec, "rectools": train_rectools, "recbole": train_recbole}[chosen.peer]
        train(chosen, json.loads(chosen.params), chosen.worker)
        return
    if chosen.out is None:
        parser.error("--out names the file that the result is added to")
    if chosen.peer == "rectools" and chosen.model != "SASRec":
        parser.error("RecTools has SASRec alone")
    record = measure(chosen)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with chosen.out.open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
