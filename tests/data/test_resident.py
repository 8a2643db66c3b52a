"""Batches made where the data lies: those of the loader, bit for bit, and the same in fixed sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq.data.batch import JaggedBatch
from fastseq.data.loader import Loader
from fastseq.data.negatives import NegativeSampler
from fastseq.data.resident import ResidentData
from fastseq.data.split import Split
from fastseq.ops import record_served, set_backend
from tests.ops.backends import needs_triton

from .tapes import random_tape
from .test_loader import SHAPES, same, split_of

BACKENDS = ["cpu", "reference", pytest.param("triton", marks=needs_triton)]
SAMPLERS: list[dict[str, Any]] = [
    {"mode": mode, "distribution": distribution}
    for mode in ("per_target", "shared", "shared_unseen")
    for distribution in ("uniform", "popularity")
]


@pytest.fixture(scope="module")
def split() -> Split:
    return split_of(random_tape(40, 50, 30))


def loader_of(split: Split, sampler: dict[str, Any] | None = None, **options: Any) -> Loader:
    drawn = None if sampler is None else NegativeSampler(split, 3, with_log_q=True, **sampler)
    return Loader(split, **{"batch_size": 40, "max_len": 8, "seed": 9, "prefetch": 0, "sampler": drawn, **options})


def check(loader: Loader, backend: str, epoch: int, start: int = 0) -> None:
    with set_backend(backend), record_served() as served:
        made = list(ResidentData(loader, "cpu").batches(epoch, start))
    assert {name for _, name in served} == {backend}
    expected = list(loader.batches(epoch, start))
    assert len(made) == len(expected) == len(loader) - start
    for a, b in zip(made, expected, strict=True):
        assert same(a, b), [name for name, x in vars(a).items() if not equal(x, getattr(b, name))]


def equal(x: Any, y: Any) -> bool:
    return torch.equal(x, y) if isinstance(x, Tensor) else x == y


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_batches_of_the_loader(split: Split, shape: dict[str, Any], backend: str) -> None:
    check(loader_of(split, l2=True, **shape), backend, 1, 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_the_draws_of_the_loader(split: Split, sampler: dict[str, Any], backend: str) -> None:
    check(loader_of(split, sampler, window_stride=3), backend, 1, 2)


@pytest.mark.parametrize("batch_size", [3, 60])
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_ranks(split: Split, rank: int, batch_size: int) -> None:
    """With batches of 3 targets some ranks have nothing."""
    sampler = {"mode": "per_target", "distribution": "popularity"}
    check(loader_of(split, sampler, l2=True, batch_size=batch_size, rank=rank, world_size=5), "cpu", 1)


def used(batch: JaggedBatch, whole: JaggedBatch) -> dict[str, tuple[Tensor, Tensor]]:
    """By field, the part of ``batch`` that is not unused, and all of ``whole``."""
    result = {}
    for name, x in vars(whole).items():
        if isinstance(x, Tensor):
            result[name] = getattr(batch, name)[: len(x)], x
    return result
