"""What the tests run in processes of their own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # torch.optim imports it when it is first used: once here instead of in every process
from safetensors.torch import save_file

import fastseq
from fastseq.data.batch import JaggedBatch
from fastseq.data.interactions import build_interactions
from fastseq.data.split import Split, leave_one_out
from fastseq.errors import ConfigError, TrainingError
from fastseq.models import MODELS, SequentialRecommender, Shards
from fastseq.ops import topk
from fastseq.training.distributed import Ranks
from fastseq.training.evaluation import evaluate
from fastseq.training.loop import Trainer
from fastseq.training.options import TrainingOptions, Updates
from tests.models.small import required_params

from .tiny import OnSteps, make_model, make_split

PARAMS: dict[str, Any] = {"dropout_prob": 0.2, "reg_weight": 0.01, "weight_decay": 0.01}


def train_to_the_end(
    run_dir: str | None, out: str, epochs: int, checkpoint_every: float | None, kill_at: tuple[str, int] | None = None
) -> None:
    """Trains, resuming from whatever ``run_dir`` holds, and writes the weights.

    Args:
        kill_at: kill -9 of this process, where ("step", n) is after its n-th step and before the checkpoint of it, and
            (name, n) is before its n-th call of the function ``name`` of ``os``.
    """
    torch.set_num_threads(1)
    name, number = kill_at or ("", 0)
    calls = itertools.count(1)

    def count(*arguments: Any) -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    if name not in ("", "step"):
        original = getattr(os, name)

        def counted(*arguments: Any) -> Any:
            count()
            return original(*arguments)

        setattr(os, name, counted)
    split = make_split()
    model = make_model(split, **PARAMS)
    options = TrainingOptions(
        epochs=epochs,
        schedule="cosine",
        validate_every=2,
        checkpoint_every_seconds=checkpoint_every,
        progress_every_seconds=0.0,
    )
    callbacks = [OnSteps(count)] if name == "step" else []
    result = Trainer(model, split, options, run_dir, callbacks, resume=run_dir is not None).fit()
    assert result.stopped == "finished", result.message
    save_file(model.state_dict(), f"{out}.tmp")
    Path(f"{out}.tmp").rename(out)


def train_with_others(rank: int, world_size: int, port: int, folder: str) -> None:
    """One rank of a training in float64 without dropout; rank 0 writes the weights, each the targets it saw."""
    joined(rank, world_size, port)
    seen, metrics = train_recorded(Path(folder))
    tensors = {"seen": seen, "metrics": torch.tensor(list(metrics.values()), dtype=torch.float64)}
    save_file(tensors, f"{folder}/rank{rank}.safetensors")
    leave(Ranks(rank, world_size))


# (model, users, how many of them have more than one event, updates): few users leave a rank without a window, in the
# last batch or in all, and without a user to validate.
FEW: list[tuple[int, Updates]] = [(7, "rows"), (7, "dense"), (2, "rows"), (2, "dense")]
UNEVEN: list[tuple[str, int, int, Updates]] = [
    *((name, 60, 60, "rows") for name in MODELS),
    *((name, 7, long, updates) for name in MODELS for long, updates in FEW),
]


def train_uneven(rank: int, world_size: int, port: int, folder: str) -> None:
    """One rank of each training of UNEVEN, in float64; each writes its weights, what it sent, and when it stopped."""
    joined(rank, world_size, port)
    sent = 0
    gather = Ranks.gather

    def counted(self: Ranks, tensor: torch.Tensor) -> list[torch.Tensor]:
        nonlocal sent
        sent += tensor.nbytes
        return gather(self, tensor)

    Ranks.gather = counted  # type: ignore[method-assign]
    for number, (name, n_users, long, updates) in enumerate(UNEVEN):
        rng = np.random.default_rng(number % 2)
        lengths = np.where(np.arange(n_users) < long, rng.integers(4, 9, n_users), 1)
        items = np.concatenate([np.arange(200), rng.integers(0, 200, lengths.sum())]).tolist()
        # Single events of further users are the rest of the catalogue.
        users = [*range(n_users, n_users + 200), *np.repeat(np.arange(n_users), lengths).tolist()]
        split = leave_one_out(build_interactions(users, items))
        info = {"n_users": split.interactions.n_users, "n_items": split.interactions.n_items}
        params = required_params(name, reg_weight=0.01, weight_decay=0.01, epochs=6, max_seq_len=8)
        model = MODELS[name](
            params | {"batch_size": 60 if n_users == 60 else 10, "learning_rate": 0.02}, info, seed=1
        ).double()
        options = TrainingOptions(clip_norm=0.5, updates=updates, patience=1, validation_metric="NDCG@100")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # items without a training event
            trainer = Trainer(model, split, options)
            sent = 0
            result = trainer.fit()
        stopped = torch.tensor([result.epochs, result.best_epoch or 0, result.stopped == "patience"])
        values = torch.tensor([each["validation"]["NDCG@100"] for each in result.history], dtype=torch.float64)
        told = {"sent": torch.tensor([sent, result.steps]), "stopped": stopped, "values": values}
        save_file(model.state_dict() | told, f"{folder}/{number}.rank{rank}")
    leave(trainer.ranks)


def stop_with_others(rank: int, world_size: int, port: int, folder: str) -> None:
    """One rank of a training whose second rank gets a signal in its 4th step; each writes how it ended."""
    joined(rank, world_size, port)
    split = make_split()
    model = make_model(split, **PARAMS)
    trainer = Trainer(model, split, TrainingOptions(epochs=3), Path(folder) / "run")
    loss, steps = model.loss, itertools.count(1)

    def signalled(batch: JaggedBatch) -> torch.Tensor:
        if rank == 1 and next(steps) == 4:
            signal.raise_signal(signal.SIGTERM)
        return loss(batch)

    model.loss = signalled  # type: ignore[method-assign]
    result = trainer.fit()
    Path(folder, f"rank{rank}").write_text(f"{result.stopped} {result.steps}")
    leave(trainer.ranks)


def end_badly(rank: int, world_size: int, port: int, folder: str, how: str, who: int) -> None:
    """One rank of a training in which rank ``who`` fails, dies or freezes in its 4th step, works for long in it, or
    never comes, or is given other data and options. Its stderr is a file, with the error that it ended by."""
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "FASTSEQ_SILENT_SECONDS": "6", "FASTSEQ_JOIN_SECONDS": "30" if how != "late" else "12",
    }  # fmt: skip
    torch.set_num_threads(1)
    os.dup2(os.open(f"{folder}/stderr{rank}", os.O_WRONLY | os.O_CREAT), 2)
    odd = rank == who
    if how == "late" and odd:
        return
    split = make_split(n_users=39 if how == "differ" and odd else 40)
    model = make_model(split, **PARAMS, learning_rate=0.02 if how == "differ" and odd else 0.01)
    options = TrainingOptions(epochs=2, progress_every_seconds=2 if how == "differ" and odd else 1)
    loss, steps = model.loss, itertools.count(1)

    def ends(batch: JaggedBatch) -> torch.Tensor:
        if odd and next(steps) == 4:
            if how == "raise":
                raise ValueError("a loss that is none\nwith a second line")
            if how == "work":
                time.sleep(9)
            elif how != "differ":
                os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        return loss(batch)

    model.loss = ends  # type: ignore[method-assign]
    try:
        trainer = Trainer(model, split, options, f"{folder}/run" if how == "differ" and odd else None)
        trainer.fit()
        trainer.ranks.leave()
    except (ConfigError, TrainingError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(3)
    os._exit(0)


def train_recorded(folder: Path) -> tuple[torch.Tensor, dict[str, float]]:
    """Trains in this process (as one of several, if the environment says so).

    Returns:
        (step, user, target) of every target of this rank, int64 [n, 3], and the metrics on the test part, with a sum
        over the metrics of users that tells their order.
    """
    split = make_split(n_users=37)
    model = make_model(split, reg_weight=0.01, weight_decay=0.01, batch_size=50).double()
    trainer = Trainer(model, split, TrainingOptions(epochs=3, clip_norm=0.5), folder / "run")
    seen: list[torch.Tensor] = []
    loss = model.loss

    def record(batch: JaggedBatch) -> torch.Tensor:
        users = batch.users[batch.target_sequences]
        seen.append(torch.stack([torch.full_like(users, len(seen)), users, batch.targets], dim=1))
        return loss(batch)

    model.loss = record  # type: ignore[method-assign]
    trainer.fit()
    evaluation = evaluate(model, split, ks=(5, 10), per_user=True, by=("length", "popularity"), ranks=trainer.ranks)
    assert evaluation.users is not None
    evaluation.metrics["order"] = float(np.arange(1, len(evaluation.users.users) + 1) @ evaluation.users["MRR@10"])
    for group in evaluation.by["length"] + evaluation.by["popularity"]:
        evaluation.metrics[group["group"]] = group["metrics"]["MRR@10"]
    if trainer.ranks.is_first:
        save_file(model.state_dict(), folder / "weights.safetensors")
    return torch.cat(seen), evaluation.metrics


def joined(rank: int, world_size: int, port: int) -> None:
    """Says who this process is, as torchrun would."""
    if world_size > 1:
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)
        }  # fmt: skip
    torch.set_num_threads(1)


def leave(ranks: Ranks) -> None:
    """Ends this process: gloo's threads outlive the group, and may abort a Python that is being taken down."""
    ranks.leave()
    os._exit(0)


HISTORIES: list[list[int]] = [[0, 1, 2], [5, 6, 7, 8, 9, 3, 3, 1, 0, 2], [150], []]


def sharded_model(name: str, split: Split, shards: Shards | None, **changes: Any) -> SequentialRecommender:
    info = {"n_users": split.interactions.n_users, "n_items": split.interactions.n_items}
    params = required_params(name, reg_weight=0.01, weight_decay=0.01, batch_size=20, epochs=3, max_seq_len=8)
    return MODELS[name](params | changes, info, seed=1, shards=shards)


def ranks_ties(shards: Shards) -> None:
    """A ranking of small integers, equal scores everywhere: bit for bit that of the whole table."""
    generator = torch.Generator().manual_seed(3)
    table, h = (torch.randint(-2, 3, (n, 4), generator=generator).float() for n in (101, 9))
    counts = torch.randint(0, 40, (9,), generator=generator)
    counts[4] = 97  # fewer items are left than are asked for
    seen = torch.cat([torch.randperm(100, generator=generator)[:n].sort().values for n in counts.tolist()])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
    for lists in ((None, None), (offsets, seen)):
        scores, items = topk(h, table[:-1], 6, seen_offsets=lists[0], seen_items=lists[1])
        own, ids = shards.topk(h, table[shards.rank :: shards.world_size], 100, 6, *lists)
        assert torch.equal(own, scores) and torch.equal(ids, items)


def train_sharded(rank: int, world_size: int, port: int, folder: str, cases: list[tuple[str, int, int, str]]) -> None:
    """One process of trainings by divided tables, or of whole ones where it is alone. For each case (model, users,
    epochs, dtype) the first writes what came out."""
    joined(rank, world_size, port)
    ranks = Ranks.join()
    shards = Shards(rank, world_size) if world_size > 1 else None
    if shards is not None:
        ranks_ties(shards)
    for name, n_users, epochs, dtype in cases:
        split = make_split(n_users=n_users, n_items=200)
        model = sharded_model(name, split, shards, epochs=epochs).to(getattr(torch, dtype))
        if shards is not None:
            assert model.item_embedding.weight.shape[0] == shards.count(model.n_items + 1)
        where = Path(folder) / f"{name}-{n_users}-{dtype}"
        updates: Updates = "dense" if shards is None else "auto"
        options = TrainingOptions(clip_norm=0.5, updates=updates, validation_metric="nDCG@5", patience=epochs)
        result = Trainer(model, split, options, where / "run").fit()
        metrics = evaluate(model, split, ks=(5, 10), ranks=ranks, batch_size=7).metrics
        sampled = evaluate(model, split, ks=(5,), protocol="sampled", n_negatives=20, ranks=ranks).metrics
        users = [0, None, 1, 2] if model.needs_user else None
        asked = model.recommend(HISTORIES, k=7, users=users, unknown_users="mean")  # type: ignore[call-overload]
        if rank == 0:
            weights = fastseq.load(where / "run").state_dict()
            save_file({**weights, "steps": torch.tensor(result.steps)}, where / "weights.safetensors")
            text = json.dumps({"test": metrics, "sampled": sampled, "asked": asked, "history": result.history})
            (where / "answers.json").write_text(text)
    leave(Ranks(rank, world_size))


def train_on(rank: int, world_size: int, port: int, run: str, out: str, epochs: int, kill_after: int | None) -> None:
    """One process of a training by divided tables that goes on from what ``run`` holds, saved at every step; the last
    process is killed after so many steps."""
    joined(rank, world_size, port)
    Ranks.join()
    split = make_split(n_users=30, n_items=100)
    model = sharded_model("Caser", split, Shards(rank, world_size) if world_size > 1 else None, epochs=epochs)
    options = TrainingOptions(checkpoint_every_seconds=0.0, validate_every=2, updates="rows")
    trainer = Trainer(model, split, options, run, resume=True)
    loss, steps = model.loss, itertools.count(1)

    def counted(batch: JaggedBatch) -> torch.Tensor:
        if rank == world_size - 1 and next(steps) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(batch)

    model.loss = counted  # type: ignore[method-assign]
    result = trainer.fit()
    assert result.stopped == "finished", result.message
    Ranks(rank, world_size).wait()
    if rank == 0:
        save_file(fastseq.load(run).state_dict(), out)
    leave(Ranks(rank, world_size))
