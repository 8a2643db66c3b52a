"""A peer's own loader, model and loss. Runs in the peer's environment, started by peers.py; imports nothing of fastseq.

    PEER_PYTHON benchmarks/peer_worker.py FOLDER

FOLDER has job.json (what to do) and split.npz (histories). Each result is one JSON line. WarpRec and RecBole: one
sequence per target. RecTools, SASRec alone: SASRecModel.fit, one negative, the last L + 1 events of each user.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

Score = Callable[[list[Any], Any], Any]  # histories and their users to scores [histories, items]
SCORED_AT_ONCE = 128


class Job:
    """job.json and split.npz; and what the peer's steps took.

    Attributes:
        peer, model, params, seed, epochs, batches, every: of job.json; ``params`` under WarpRec's names.
        histories: items of every user's training part, in order.
        parts: by name of a held-out part, its histories and whose they are; empty: speed alone is asked for.
        n_items: of the catalogue.
        steps: of the epoch, seconds of each step with the loading of its batch, and its targets.
    """

    def __init__(self, folder: Path) -> None:
        self.__dict__.update(json.loads((folder / "job.json").read_text()))
        self.folder, self.steps = folder, list[tuple[float, int]]()
        stored = np.load(folder / "split.npz")

        def cut(part: str) -> list[Any]:
            bounds = zip(stored[f"{part}_start"], stored[f"{part}_stop"], strict=True)
            return [stored_items[start:stop] for start, stop in bounds]

        stored_items = stored["items"]
        self.histories, self.n_items = cut("train"), int(stored["n_items"])
        names = [key.removesuffix("_users") for key in stored.files if key.endswith("_users")]
        self.parts = {part: (cut(part), stored[f"{part}_users"]) for part in names}

    def start(self) -> None:
        """Before an epoch."""
        self.steps.clear()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def step(self, targets: int) -> None:
        """After each step."""
        now = time.perf_counter()
        self.steps.append((now - self.wall, targets))
        self.wall = now

    def end(self, epoch: int, score: Score) -> None:
        """After an epoch: a line to the parent, and the scores of every held-out history into a file."""
        cpu, counted = time.process_time() - self.cpu, self.steps[1:] or self.steps
        pace = statistics.median(seconds for seconds, _ in counted)
        figures = {"epoch": epoch, "cpu_seconds": cpu, "wall_seconds": pace * len(self.steps)}
        if self.parts:
            scores = {part: score(*histories) for part, histories in self.parts.items()}
            np.savez(self.folder / f"{epoch}.npz", **scores)
        else:
            figures = {"targets_per_s": statistics.mean(targets for _, targets in counted) / pace}
        print(json.dumps(figures), flush=True)


def train(job: Any, loader: Any, model: Any, optimizer: Any, loss: Callable[[Any], Any], score: Score) -> None:
    """The loop of a peer whose own is in its trainer; for speed a few batches alone."""
    for epoch in range(1, job.epochs + 1):
        model.train()
        job.start()
        for batch in islice(loader, None if job.parts else job.batches):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
            job.step(job.params["batch_size"])
        model.eval()
        with torch.inference_mode():
            job.end(epoch, score)


def warprec(job: Any) -> None:
    """WarpRec 2.2.8."""
    import scipy.sparse as sp
    from torch.utils.data import DataLoader
    from warprec.data.entities.train_structures.session_structures import SequentialDataset
    from warprec.recommenders.sequential_recommender import caser, gru4rec, sasrec

    params, longest, n_users = job.params, job.params["max_seq_len"], len(job.histories)
    lengths = np.array([len(history) for history in job.histories])
    users, items = np.repeat(np.arange(n_users), lengths), np.concatenate(job.histories)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    seen = sp.csr_matrix((np.ones(len(items)), (users, items)), shape=(n_users, job.n_items))
    seen.sum_duplicates()
    seen.sort_indices()
    targets = np.setdiff1d(np.arange(len(items)), offsets[:-1])
    data = SequentialDataset(
        items, users, offsets, targets, seen, longest, params["neg_samples"], job.n_items, seed=job.seed,
        include_user_id=job.model == "Caser",
    )  # fmt: skip
    kinds = {"SASRec": sasrec.SASRec, "GRU4Rec": gru4rec.GRU4Rec, "Caser": caser.Caser}
    model = kinds[job.model](params, {"n_users": n_users, "n_items": job.n_items}, seed=job.seed)
    model.log = lambda *a, **k: None

    def score(histories: list[Any], users: Any) -> Any:
        rows = []
        for first in range(0, len(histories), SCORED_AT_ONCE):
            some = [torch.as_tensor(h[-longest:]) for h in histories[first : first + SCORED_AT_ONCE]]
            padded = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=job.n_items)
            names, lengths = torch.as_tensor(users[first : first + len(some)]), torch.tensor([len(h) for h in some])
            rows.append(model.predict(user_indices=names, user_seq=padded, seq_len=lengths))
        return torch.cat(rows).numpy()

    loader = DataLoader(data, batch_size=params["batch_size"], shuffle=True)
    train(job, loader, model, model.configure_optimizers(), lambda batch: model.training_step(batch, 0), score)


# WarpRec's names of hyper-parameters, where RecBole has others.
RECBOLE_NAMES: dict[str, dict[str, str]] = {
    "SASRec": {"embedding_size": "hidden_size", "dropout_prob": "hidden_dropout_prob"},
    "GRU4Rec": {},
    "Caser": {"n_h": "nh", "n_v": "nv"},
}


def recbole(job: Any) -> None:
    """RecBole 1.2.1: bpr with ``neg_samples`` negatives, one target a row."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.data.interaction import Interaction
    from recbole.utils import get_model, init_seed

    longest = job.params["max_seq_len"]
    negatives = {"sample_num": job.params["neg_samples"], "dynamic": False, "candidate_num": 0}
    settings = {RECBOLE_NAMES[job.model].get(key, key): value for key, value in job.params.items()} | {
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": longest,
        "loss_type": "BPR",
        "train_batch_size": job.params["batch_size"],
        "train_neg_sample_args": {"distribution": "uniform"} | negatives,
        "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "group_by": "user", "mode": "full"},
        "use_gpu": False,
        "seed": job.seed,
        "state": "ERROR",
        "show_progress": False,
    }
    sys.argv = sys.argv[:1]  # RecBole would read them
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        with (Path(folder) / "data" / "data.inter").open("w") as file:
            file.write("user_id:token\titem_id:token\ttimestamp:float\n")
            for user, history in enumerate(job.histories):
                file.writelines(f"{user}\t{item}\t{position}\n" for position, item in enumerate(history))
        config = Config(model=job.model, dataset="data", config_dict=settings | {"data_path": folder})
        init_seed(job.seed, reproducibility=True)
        data = create_dataset(config)
        loader, _, _ = data_preparation(config, data)
    model = get_model(job.model)(config, loader._dataset)
    # RecBole's numbers, by ours as text; 0: its padding.
    numbers = data.field2token_id
    inner = np.zeros(job.n_items, np.int64)
    for item, number in numbers["item_id"].items():
        if number:
            inner[int(item)] = number
    trained = inner.nonzero()[0]

    def score(histories: list[Any], users: Any) -> Any:
        scores = np.full((len(histories), job.n_items), -np.inf, np.float32)  # never trained: no score
        for first in range(0, len(histories), SCORED_AT_ONCE):
            x, lengths = last_items(histories[first : first + SCORED_AT_ONCE], inner, longest)
            names = torch.tensor([numbers["user_id"][str(user)] for user in users[first : first + len(x)]])
            columns = {"user_id": names, "item_id_list": x, "item_length": lengths}
            rows = model.full_sort_predict(Interaction(columns)).view(len(x), -1)
            scores[first : first + len(x), trained] = rows[:, inner[trained]].numpy()
        return scores

    optimizer = torch.optim.Adam(model.parameters(), lr=job.params["learning_rate"])
    train(job, loader, model, optimizer, model.calculate_loss, score)


def last_items(histories: list[Any], inner: Any, longest: int, *, left: bool = False) -> tuple[Any, Any]:
    """The last known items of each history under a peer's own numbers, padded with 0, and how many (at least 1)."""
    x, lengths = torch.zeros(len(histories), longest, dtype=torch.long), torch.ones(len(histories), dtype=torch.long)
    for row, history in enumerate(histories):
        ids = torch.as_tensor(inner[history[inner[history] > 0]][-longest:])
        start = longest - len(ids) if left else 0
        x[row, start : start + len(ids)] = ids
        lengths[row] = max(len(ids), 1)
    return x, lengths


def rectools(job: Any) -> None:
    """RecTools 0.19."""
    import pandas as pd
    from pytorch_lightning import Callback, Trainer, seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seed_everything(job.seed, verbose=False)
    params, longest = job.params, job.params["max_seq_len"]
    events = [(user, item, n) for user, h in enumerate(job.histories[:: job.every]) for n, item in enumerate(h)]
    frame = pd.DataFrame(events, columns=[Columns.User, Columns.Item, Columns.Datetime])
    frame[Columns.Weight] = 1.0
    frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime], unit="s")

    class Watch(Callback):  # fit() copies the trainer, so nothing is kept in the callback
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            job.start()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            job.step(int((batch["y"] != 0).sum()))

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            job.end(trainer.current_epoch + 1, scorer(module))

    def scorer(module: Any) -> Score:
        first = model.data_preparator.n_item_extra_tokens  # before them in the table: padding
        trained = model.data_preparator.item_id_map.external_ids[first:].astype(np.int64)
        inner = np.zeros(job.n_items, np.int64)
        inner[trained] = np.arange(first, first + len(trained))

        def score(histories: list[Any], users: Any) -> Any:
            net = module.torch_model.eval()
            scores = np.full((len(histories), job.n_items), -np.inf, np.float32)  # never trained: no score
            x, _ = last_items(histories, inner, longest, left=True)
            with torch.inference_mode():
                items = net.item_model.get_all_embeddings()
                parts = [net.encode_sessions({"x": some}, items)[:, -1] for some in x.split(SCORED_AT_ONCE)]
                scores[:, trained] = (torch.cat(parts) @ items[first:].T).numpy()
            net.train()
            return scores

        return score

    def trainer() -> Any:
        return Trainer(
            max_epochs=job.epochs, callbacks=[Watch()], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip

    model = SASRecModel(
        n_factors=params["embedding_size"], n_blocks=params["n_layers"], n_heads=params["n_heads"],
        session_max_len=longest, loss="BCE", n_negatives=1, epochs=job.epochs, batch_size=params["batch_size"],
        dropout_rate=params["dropout_prob"], lr=params["learning_rate"], verbose=0, get_trainer_func=trainer,
    )  # fmt: skip
    model.fit(Dataset.construct(frame))


if __name__ == "__main__":
    job: Any = Job(Path(sys.argv[1]))
    torch.manual_seed(job.seed)
    {"warprec": warprec, "recbole": recbole, "rectools": rectools}[job.peer](job)
