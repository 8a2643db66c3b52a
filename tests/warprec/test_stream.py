"""The endless stream over a loader: epochs, what a resumed run needs, ranks, and what a trainer does with an item."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

import fastseq
from fastseq.data.batch import JaggedBatch
from fastseq.data.loader import Loader
from fastseq.data.negatives import NegativeSampler
from tests.data.tapes import random_tape

# From its file: the package that it belongs to needs WarpRec, the stream does not.
spec = spec_from_file_location("fastseq.warprec.stream", Path(fastseq.__file__).with_name("warprec") / "stream.py")
stream_module = module_from_spec(spec)
spec.loader.exec_module(stream_module)
BatchStream, StreamItem = stream_module.BatchStream, stream_module.StreamItem

DATA = random_tape(30, 50, 25)


def build(rank: int = 0, world_size: int = 1, batch_size: int = 40) -> Loader:
    return Loader(
        DATA,
        batch_size=batch_size * world_size,
        max_len=8,
        sampler=NegativeSampler(DATA, 2),
        rank=rank,
        world_size=world_size,
        prefetch=0,
    )


def epoch(loader: DataLoader[Any]) -> list[JaggedBatch]:
    return [item.batch for item in loader]


def same(a: list[JaggedBatch], b: list[JaggedBatch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.items, y.items) and torch.equal(x.targets, y.targets) and torch.equal(x.negatives, y.negatives)
        for x, y in zip(a, b, strict=True)
    )


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A process group of any size, as far as the stream asks about it."""
    group = {"rank": 0, "world_size": 1}
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: group["rank"])
    monkeypatch.setattr(dist, "get_world_size", lambda: group["world_size"])
    return group


def test_every_iteration_is_one_whole_epoch_of_another_order() -> None:
    loader = DataLoader(BatchStream(build, 3), batch_size=None)
    first, second = epoch(loader), epoch(loader)
    expected = build()
    assert len(first) == len(second) == len(loader) == len(expected)
    targets = [torch.cat([batch.targets for batch in batches]) for batches in (first, second, expected.batches(0))]
    assert not torch.equal(targets[0], targets[1])
    assert all(torch.equal(drawn.sort().values, targets[2].sort().values) for drawn in targets)


@pytest.mark.parametrize("seed", [0, -1, 2**63 + 5])
def test_the_seed_decides_every_epoch(seed: int) -> None:
    a, b, other = (DataLoader(BatchStream(build, number), batch_size=None) for number in (seed, seed, 17))
    for _ in range(2):
        assert same(epoch(a), epoch(b))
    assert not same(epoch(a), epoch(other))


def test_the_state_of_rng_between_two_epochs_is_all_that_a_resumed_run_needs() -> None:
    stream = BatchStream(build, 3)
    whole = [epoch(DataLoader(stream, batch_size=None)) for _ in range(2)]
    state = stream.rng.bit_generator.state
    whole.append(epoch(DataLoader(stream, batch_size=None)))
    resumed = BatchStream(build, 99)
    resumed.rng.bit_generator.state = state
    assert same(epoch(DataLoader(resumed, batch_size=None)), whole[2])


def test_a_state_restored_after_the_iterator_was_made_counts() -> None:
    stream, reference = BatchStream(build, 3), BatchStream(build, 4)
    iterator = iter(stream)
    stream.rng.bit_generator.state = reference.rng.bit_generator.state
    assert same([item.batch for item in iterator], [item.batch for item in reference])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_divide_the_batches_of_one_process(ranks: dict[str, int], world_size: int) -> None:
    parts = []
    for rank in range(world_size):
        ranks.update(rank=rank, world_size=world_size)
        stream = BatchStream(build, 3)
        parts.append(epoch(DataLoader(stream, batch_size=None)))
        assert len(parts[-1]) == len(stream)
    ranks.update(rank=0, world_size=1)
    one_process = BatchStream(lambda **_: build(batch_size=40 * world_size), 3)
    for step, (batch, *divided) in enumerate(zip(epoch(DataLoader(one_process, batch_size=None)), *parts, strict=True)):
        assert torch.equal(torch.cat([part.targets for part in divided]), batch.targets), step
        assert torch.equal(torch.cat([part.negatives for part in divided]), batch.negatives), step
        assert {part.n_targets_global for part in divided} == {batch.n_targets}


def test_a_process_group_that_starts_later_is_found(ranks: dict[str, int]) -> None:
    stream = BatchStream(build, 3)
    alone = len(stream)
    ranks.update(rank=1, world_size=2)
    assert len(stream) < alone and stream._current().rank == 1


def test_an_item_shows_its_targets_and_moves_whole() -> None:
    item = next(iter(BatchStream(build, 3)))
    (shown,) = item
    assert shown is item.batch.targets and len(shown) == item.batch.n_targets
    moved: Any = item.to("meta")
    assert isinstance(moved, StreamItem) and moved.batch.targets.device.type == "meta"
    assert item.batch.targets.device.type == "cpu"


def test_items_are_equal_by_their_tensors_and_can_be_looked_up() -> None:
    stream, again, other = (BatchStream(build, seed) for seed in (3, 3, 4))
    first, second = stream[0], stream[1]
    assert first == again[0] and first != second and first != other[0] and first != "a batch"
    assert {"items", "offsets", "targets", "negatives"} <= first.tensors.keys()
    assert repr(first).startswith("StreamItem(items [") and "targets [40]" in repr(first)
    assert list(stream)[:2] == [first, second]  # a look draws nothing
    for index in (-1, len(stream)):
        with pytest.raises(IndexError, match=f"batches 0 to {len(stream) - 1}, got {index}"):
            stream[index]
