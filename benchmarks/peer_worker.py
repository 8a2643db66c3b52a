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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Score = Callable[[list[Any], Any], Any]  # histories and their users to scores [histories, items]
SCORED_AT_ONCE = 128


class Job:
    """job.json and split.npz.

    Attributes:
        peer, model, params, seed, epochs, batches, loss, every: of job.json; ``params`` under WarpRec's names.
        histories: items of every user's training part, in order.
        parts: by name of a held-out part, its histories and whose they are.
        n_items: of the catalogue.
    """

    def __init__(self, folder: Path) -> None:
        self.__dict__.update(json.loads((folder / "job.json").read_text()))
        self.folder = folder
        stored = np.load(folder / "split.npz")

        def cut(part: str) -> list[Any]:
            bounds = zip(stored[f"{part}_start"], stored[f"{part}_stop"], strict=True)
            return [stored_items[start:stop] for start, stop in bounds]

        stored_items = stored["items"]
        self.histories, self.n_items = cut("train"), int(stored["n_items"])
        names = [key.removesuffix("_users") for key in stored.files if key.endswith("_users")]
        self.parts = {part: (cut(part), stored[f"{part}_users"]) for part in names}

    def report(self, epoch: int, steps: list[float], cpu: float, score: Score) -> None:
        """One line to the parent, and the scores of every held-out history into a file."""
        np.savez(self.folder / f"{epoch}.npz", **{part: score(*histories) for part, histories in self.parts.items()})
        tell(epoch=epoch, cpu_seconds=cpu, wall_seconds=statistics.median(steps) * len(steps))


def tell(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


@dataclass
class Side:
    """A peer whose training loop is in its trainer: its loader, model and optimizer, and how to use them."""

    loader: Any
    model: Any
    optimizer: Any
    loss: Callable[[Any], Any]
    score: Score

    def step(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        self.loss(batch).backward()
        self.optimizer.step()

    def speed(self, job: Any) -> None:
        """Medians of loading and of stepping, added up."""
        self.model.train()
        batches, loading, steps = iter(self.loader), [], []
        for _ in range(job.batches):
            start = time.perf_counter()
            batch = next(batches)
            loaded = time.perf_counter()
            self.step(batch)
            loading.append(loaded - start)
            steps.append(time.perf_counter() - loaded)
        seconds = statistics.median(loading[1:] or loading) + statistics.median(steps[1:] or steps)
        tell(targets_per_s=job.params["batch_size"] / seconds, batch_size=job.params["batch_size"])

    def train(self, job: Any) -> None:
        """All epochs, each reported."""
        for epoch in range(1, job.epochs + 1):
            self.model.train()
            steps, start, cpu = [], time.perf_counter(), time.process_time()
            for batch in self.loader:
                self.step(batch)
                steps.append(time.perf_counter() - start)
                start = time.perf_counter()
            cpu = time.process_time() - cpu
            self.model.eval()
            with torch.inference_mode():
                job.report(epoch, steps, cpu, self.score)


def warprec(job: Any) -> Side:
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
    return Side(loader, model, model.configure_optimizers(), lambda batch: model.training_step(batch, 0), score)


# WarpRec's names of hyper-parameters, where RecBole has others.
RECBOLE_NAMES: dict[str, dict[str, str]] = {
    "SASRec": {"embedding_size": "hidden_size", "dropout_prob": "hidden_dropout_prob"},
    "GRU4Rec": {},
    "Caser": {"n_h": "nh", "n_v": "nv"},
}


def recbole(job: Any) -> Side:
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
    return Side(loader, model, optimizer, model.calculate_loss, score)


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
    """RecTools 0.19. Speed: optimizer steps between the first batch and the last, so that setting up does not count."""
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
    # fit() copies the trainer, so nothing is kept in the callback.
    ends: list[tuple[float, int]] = []  # of each batch: when it ended, how many targets it had
    steps: list[float] = []
    marks = {"wall": 0.0, "cpu": 0.0}

    class Watch(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            marks.update(wall=time.perf_counter(), cpu=time.process_time())
            steps.clear()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            now = time.perf_counter()
            ends.append((now, int((batch["y"] != 0).sum())))
            steps.append(now - marks["wall"])
            marks["wall"] = now

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if job.parts:
                job.report(trainer.current_epoch + 1, steps, time.process_time() - marks["cpu"], scorer(module))

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
    if not job.parts:
        targets, seconds = sum(n for _, n in ends[1:]), ends[-1][0] - ends[0][0]
        tell(targets_per_s=targets / seconds, batch_size=f"{params['batch_size']} sequences")


def main() -> None:
    job: Any = Job(Path(sys.argv[1]))
    if job.peer == "rectools":
        rectools(job)
        return
    torch.manual_seed(job.seed)
    side = {"warprec": warprec, "recbole": recbole}[job.peer](job)
    if job.parts:
        side.train(job)
    else:
        side.speed(job)


if __name__ == "__main__":
    main()
