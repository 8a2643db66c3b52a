"""A small model and small data for the tests of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastseq import ops
from fastseq.data.batch import JaggedBatch
from fastseq.data.interactions import Interactions, build_interactions
from fastseq.data.split import Split, leave_one_out
from fastseq.models.base import SequentialRecommender
from fastseq.models.initialisation import init_weights
from fastseq.training.callbacks import Callback, Progress
from fastseq.training.loop import Trainer
from fastseq.training.options import TrainingOptions
from fastseq.training.result import TrainResult


class Tiny(SequentialRecommender):
    """The last event's embedding, dropout, and two linear layers: every part of a model, and quick."""

    embedding_size: int = 8
    dropout_prob: float = 0.0
    reg_weight: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 64
    epochs: int = 3
    learning_rate: float = 0.01
    neg_samples: int = 2
    max_seq_len: int = 10

    def __init__(self, params: dict, info: dict, *args: Any, seed: int = 42, **kwargs: Any) -> None:
        super().__init__(params, info, *args, seed=seed, **kwargs)
        self.item_embedding = nn.Embedding(self.n_items + 1, self.embedding_size, padding_idx=self.n_items)
        self.inner = nn.Linear(self.embedding_size, self.embedding_size)
        self.outer = nn.Linear(self.embedding_size, self.embedding_size)
        self.apply(init_weights)

    def encode(self, batch: JaggedBatch) -> Tensor:
        rng = self._take_rng()
        x = self.item_embedding(batch.items)
        if self.training and self.dropout_prob > 0:
            x = ops.dropout(x, self.dropout_prob, rng, 0)
        h = self.outer(F.gelu(self.inner(x)))
        return h if batch.rows is None else h[batch.rows]


def make_interactions(n_users: int = 40, n_items: int = 30, longest: int = 25, seed: int = 0) -> Interactions:
    """Walks in which item i is mostly followed by i + 1; users of 1 … ``longest`` events, repeats included."""
    rng = np.random.default_rng(seed)
    users, items = [], []
    for user in range(n_users):
        item = int(rng.integers(n_items))
        for _ in range(int(rng.integers(1, longest + 1))):
            users.append(user)
            items.append(item)
            item = (item + 1) % n_items if rng.random() < 0.7 else int(rng.integers(n_items))
    users += [n_users] * n_items  # every item occurs
    items += list(range(n_items))
    return build_interactions(users, items)


def make_split(n_users: int = 40, n_items: int = 30, longest: int = 25, seed: int = 0) -> Split:
    return leave_one_out(make_interactions(n_users, n_items, longest, seed))


def make_model(split: Split, seed: int = 1, **params: Any) -> Tiny:
    data = split.interactions
    return Tiny(params, {"n_users": data.n_users, "n_items": data.n_items}, seed=seed)


class OnSteps(Callback):
    """Calls a function at every report."""

    def __init__(self, function: Callable[[Progress], object]) -> None:
        self.function = function

    def on_steps(self, progress: Progress) -> None:
        self.function(progress)


def train(
    split: Split, options: TrainingOptions, run_dir: Path | None = None, on_steps: Any = None, *, seed: int = 1,
    resume: bool = False, **params: Any,
) -> tuple[Tiny, TrainResult]:  # fmt: skip
    """A model after its training, and what came of it."""
    model = make_model(split, seed, **params)
    callbacks = [] if on_steps is None else [OnSteps(on_steps)]
    return model, Trainer(model, split, options, run_dir, callbacks, resume=resume).fit()


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
