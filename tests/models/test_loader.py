"""From the tape to the loss: the loader's batches against WarpRec's samples of the same targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq.data.batch import JaggedBatch
from fastseq.data.loader import Loader
from fastseq.data.negatives import NegativeSampler
from fastseq.data.split import Split, leave_one_out
from fastseq.models import MODELS
from fastseq.models.base import SequentialRecommender
from tests.data.tapes import numbered, random_tape
from tests.ops.compare import relative_error

from . import exactness
from .restatement import Plain

LENGTH = 6


@pytest.fixture(scope="module")
def split() -> Split:
    return leave_one_out(random_tape(7, 40, 25, seed=2))


def loaders(split: Split, model: SequentialRecommender, **options: Any) -> tuple[Loader, Loader]:
    """The model's batches, and the same with tape rows in place of items, from which samples can be made."""
    sampler = None
    if model.neg_samples:
        sampler = NegativeSampler(split, model.neg_samples, mode=model.negatives)  # type: ignore[arg-type]
    common = {"max_len": LENGTH, "batch_size": 40, "seed": 3, "l2": True, "context": model.needs_context, **options}
    return Loader(split, sampler=sampler, **common), Loader(numbered(split), **common)


def sample(split: Split, batch: JaggedBatch, traced: JaggedBatch, needs_user: bool) -> tuple[Tensor, ...]:
    """WarpRec's tuple for the targets of a batch: each history cut to its last LENGTH events and padded."""
    data = split.interactions
    users = batch.users[batch.target_sequences]
    padded = torch.full((batch.n_targets, LENGTH), data.n_items)
    lengths = torch.zeros(batch.n_targets, dtype=torch.int64)
    for row, (user, target) in enumerate(zip(users.tolist(), traced.targets.tolist(), strict=True)):
        history = data.items[max(data.offsets[user], target - LENGTH) : target]
        lengths[row] = len(history)
        padded[row, : len(history)] = torch.from_numpy(history)
    rest = (batch.targets,) if batch.negatives is None else (batch.targets, batch.negatives)
    return (*((users,) if needs_user else ()), padded, lengths, *rest)


def build(name: str, split: Split, **changes: Any) -> tuple[SequentialRecommender, Plain]:
    info = {"n_users": split.interactions.n_users, "n_items": split.interactions.n_items}
    return exactness.pair(name, info=info, max_seq_len=LENGTH, **changes)


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, {"per_target": True}) for name in MODELS),
        *((name, {"window_stride": 1}) for name in MODELS),
        ("Caser", {}),
        ("Caser", {"window_stride": 4}),
    ],
)
def test_every_batch_of_an_epoch_equals_warprecs(
    split: Split, name: str, shape: dict[str, Any], negatives: int
) -> None:
    """Loss with its L2 term, and gradients, for histories shorter and longer than max_seq_len."""
    model, plain = build(name, split, neg_samples=negatives)
    batches, traced = (loader.batches(1) for loader in loaders(split, model, **shape))
    count = 0
    for batch, rows in zip(batches, traced, strict=True):
        model.zero_grad()
        plain.zero_grad()
        expected = plain.loss(sample(split, batch, rows, model.needs_user))
        exactness.assert_same_loss(model, model.loss(batch), plain, expected)
        assert all(parameter.grad is not None for parameter in model.parameters())
        count += batch.n_targets
    assert count == split.n_train - int((split.train_stop > split.interactions.offsets[:-1]).sum())


@pytest.mark.parametrize(
    "objective", [{"neg_samples": 0}, {"neg_samples": 3}, {"neg_samples": 3, "negatives": "shared"}]
)
@pytest.mark.parametrize("name", MODELS)
def test_the_losses_of_ranks_add_up(split: Split, name: str, objective: dict[str, Any]) -> None:
    """L2 term included; a rank without targets still gives every parameter a gradient, which DDP waits for."""
    model, _ = build(name, split, **objective)
    world_size = 5
    whole = loaders(split, model, batch_size=12)[0].batches(0)
    shares = [loaders(split, model, batch_size=12, rank=r, world_size=world_size)[0].batches(0) for r in range(5)]
    empty = 0
    for batch, *parts in zip(whole, *shares, strict=True):
        model.zero_grad()
        expected = model.loss(batch)
        expected.backward()
        gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        total = torch.zeros_like(expected)
        for part in parts:
            loss = model.loss(part)
            loss.backward()
            total += loss.detach()
            empty += part.n_targets == 0
            assert all(p.grad is not None for p in model.parameters())
        assert relative_error(total, expected) < 1e-10
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None
            error = (parameter.grad - gradients[key]).norm() / max(1e-3, float(gradients[key].norm()))
            assert error < 1e-10, key
    assert empty > 0, "no rank was without targets: this test shows less than it says"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [{"max_len": 1}, {"batch_size": 1}])
def test_per_target_batches_whose_sequences_have_one_event(name: str, shape: dict[str, int], split: Split) -> None:
    """Such a batch may have no ``rows``: all of them count."""
    model, _ = build(name, split, neg_samples=1)
    loader, _ = loaders(split, model, per_target=True, **shape)
    short = [batch for batch in loader.batches(0) if batch.rows is None]
    assert short
    for batch in short[:3]:
        listed = replace(batch, rows=torch.arange(batch.n_targets))
        torch.testing.assert_close(model.eval().loss(batch), model.loss(listed), rtol=1e-12, atol=0)
