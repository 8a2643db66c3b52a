"""Batches made where the data lies: those of the loader, bit for bit, and the same in fixed sizes."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastseq.data.batch import JaggedBatch
from fastseq.data.loader import Loader
from fastseq.data.negatives import NegativeSampler
from fastseq.data.resident import ResidentData, Sizes
from fastseq.data.split import Split
from fastseq.ops import record_served, set_backend
from tests.ops.backends import needs_triton

from .tapes import numbered, random_tape
from .test_loader import SHAPES, same, split_of, targets_of

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
        b.target_users = b.users_of_targets
        assert same(a, b), [name for name, x in vars(a).items() if not equal(x, getattr(b, name))]


def start_of(loader: Loader, backend: str) -> int:
    """In the midst of an epoch; Triton's interpreter takes its time."""
    return len(loader) - 2 if backend == "triton" else 2


def equal(x: Any, y: Any) -> bool:
    return torch.equal(x, y) if isinstance(x, Tensor) else x == y


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_batches_of_the_loader(split: Split, shape: dict[str, Any], backend: str) -> None:
    loader = loader_of(split, l2=True, **shape)
    check(loader, backend, 1, start_of(loader, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_the_draws_of_the_loader(split: Split, sampler: dict[str, Any], backend: str) -> None:
    loader = loader_of(split, sampler, window_stride=3)
    check(loader, backend, 1, start_of(loader, backend))


@pytest.mark.parametrize("batch_size", [3, 60])
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_ranks(split: Split, rank: int, batch_size: int) -> None:
    """With batches of 3 targets some ranks have nothing."""
    sampler = {"mode": "per_target", "distribution": "popularity"}
    check(loader_of(split, sampler, l2=True, batch_size=batch_size, rank=rank, world_size=5), "cpu", 1)


OPTIONS = st.fixed_dictionaries(
    {
        "shape": st.sampled_from(SHAPES),
        "sampler": st.none() | st.sampled_from(SAMPLERS),
        "batch_size": st.integers(1, 60),
        "world_size": st.integers(1, 3),
        "l2": st.booleans(),
        "backend": st.sampled_from(["cpu", "cpu", "reference"]),
    }
)


@settings(deadline=None, max_examples=40)
@given(options=OPTIONS, seed=st.integers(0, 99), margin=st.sampled_from([0.0, 0.3]))
def test_in_fixed_sizes_every_target_counts_once(options: dict[str, Any], seed: int, margin: float) -> None:
    """Beside the loader's batch there is padding, and targets that do not count; the next epoch in the same memory."""
    split = numbered(split_of(random_tape(12, 50, 30, seed)))
    shape, sampler, backend = (options.pop(name) for name in ("shape", "sampler", "backend"))
    ranks = range(options["world_size"])
    if len(ranks) > 1 and sampler is not None and sampler["mode"] == "per_target":
        sampler = None
    loaders = [loader_of(split, sampler, rank=rank, **shape, **options) for rank in ranks]
    counted: list[int] = []
    for loader in loaders if len(loaders[0]) else []:
        data = ResidentData(loader, "cpu")
        first = data.epoch(0)
        addresses = [x.data_ptr() for x in first._tensors]
        second = data.epoch(1, into=first)
        assert [x.data_ptr() for x in second._tensors] == addresses
        sizes = second.capacities(margin)
        assert second.fits(sizes)
        for name in (name for name, size in sizes._asdict().items() if size and not margin):
            assert not second.fits(sizes._replace(**{name: sizes._asdict()[name] - 1})), name
        place = torch.empty_like(second.places[0])
        for i, whole in enumerate(loader.batches(1)):
            place.copy_(second.places[i])
            with set_backend(backend):
                batch = first.batch_at(place, sizes)  # as recorded with the first epoch
            check_used(batch, whole, loader, sizes)
            counted += batch.targets[batch.targets >= 0].tolist()
    assert sorted(counted) == targets_of(split)


def check_used(batch: JaggedBatch, whole: JaggedBatch, loader: Loader, sizes: Sizes) -> None:
    """``batch`` begins with ``whole``, and what follows does not count."""
    whole.target_users = whole.users_of_targets
    given = dict(vars(batch))
    if batch.rows is None:
        assert (loader.windows.n_targets == loader.windows.stop - loader.windows.start).all()
    for name, x in vars(whole).items():
        if isinstance(x, Tensor) and name != "users":
            assert torch.equal(given[name][: len(x)], x), name
    n_events, n_sequences, n_targets, n_history = sizes
    b, events = len(whole.users), len(whole.items)
    assert torch.equal(batch.users, F.pad(whole.users, (0, n_sequences - b)))
    assert len(batch.items) == n_events and (batch.items[events:] == loader.n_items).all()
    assert batch.offsets[-1] == n_events and len(batch.offsets) == n_sequences + 1
    assert (batch.offsets.diff()[b:] <= batch.max_len).all()
    assert len(batch.targets) == n_targets and (batch.targets[whole.n_targets :] == -100).all()
    rows = torch.arange(n_events) if batch.rows is None else batch.rows
    assert (rows[whole.n_targets :] >= events).all()
    sequences = torch.bucketize(rows, batch.offsets[1:].long(), right=True)
    assert torch.equal(sequences, batch.target_sequences)
    assert batch.divisor == whole.n_targets_global and batch.n_targets_global == 0
    if loader.l2:
        assert len(batch.l2_items) == n_history and batch.l2_weights.sum() == whole.l2_weights.sum()  # type: ignore
        assert batch.l2_padding == whole.l2_padding
    if batch.negatives is not None:
        assert ((batch.negatives >= 0) & (batch.negatives < loader.n_items)).all()


def test_sizes_that_do_not_hold_a_batch(split: Split) -> None:
    epoch = ResidentData(loader_of(split), "cpu").epoch(0)
    sizes = epoch.capacities()
    with pytest.raises(ValueError, match="n_targets is 3, expected at least"):
        epoch.batch_at(epoch.places[0], sizes._replace(n_targets=3))
    sampler = {"mode": "per_target", "distribution": "uniform"}
    ranks = ResidentData(loader_of(split, sampler, world_size=2), "cpu").epoch(0)
    with pytest.raises(ValueError, match="batch_at has no negatives per target on several ranks"):
        ranks.batch_at(ranks.places[0], sizes)


def test_a_gpu_holds_the_data_where_a_quarter_of_it_is_enough(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = {"mode": "per_target", "distribution": "popularity"}
    cpu = loader_of(split, sampler)
    assert cpu.resident is None and cpu.residence == "batches are made on the cpu"
    data = ResidentData(cpu, "cpu")
    assert data.sampler is not None
    held = [*data.tensors, *data.epoch(0)._tensors, *data.sampler._tables.values()]
    needed = ResidentData.bytes_of(cpu)
    assert sum(x.nbytes for x in held) <= needed <= 1.3 * sum(x.nbytes for x in held)
    made: list[Any] = []
    monkeypatch.setattr("fastseq.data.loader.ResidentData.__init__", lambda self, *_: made.append(self))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * needed, 0))
    gpu = loader_of(split, sampler, device="cuda:0")
    assert [gpu.resident] == made and "are made on cuda:0, from 0 MB of data there" in gpu.residence
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * needed - 1, 0))
    gpu = loader_of(split, sampler, device="cuda:0")
    assert gpu.resident is None and "0 MB of data are more than 25% of the 0 MB free on cuda:0" in gpu.residence
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 8)
    assert loader_of(split, sampler, device="cuda:0").resident is not None, "freed tensors take no memory"


def test_data_on_a_gpu_goes_with_its_loader(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: memory of a GPU does not wait for Python's collector of circles."""
    build = ResidentData.__init__
    monkeypatch.setattr(ResidentData, "__init__", lambda self, loader, device: build(self, loader, "cpu"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 1 << 30))
    gc.disable()
    try:
        loader = loader_of(split, device="cuda:0")
        assert loader.resident is not None
        tape = weakref.ref(loader.resident.tensors[0])
        assert len(list(loader.batches(0))) == len(loader)
        del loader
        assert tape() is None
    finally:
        gc.enable()
