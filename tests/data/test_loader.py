"""Batches against their definition; resume, ranks and the background thread."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastseq.data.batch import JaggedBatch
from fastseq.data.interactions import Interactions
from fastseq.data.loader import Loader, cut
from fastseq.data.negatives import NegativeSampler
from fastseq.data.prefetch import prefetched
from fastseq.data.split import Split
from tests import run_python

from .tapes import numbered, random_tape, tape

N_ITEMS = 50


def split_of(data: Interactions) -> Split:
    stop = np.maximum(data.offsets[1:] - 2, data.offsets[:-1])
    return Split(data, stop, data.offsets[1:].copy())


@pytest.fixture(scope="module")
def split() -> Split:
    return split_of(random_tape(40, N_ITEMS, 30))


def targets_of(split: Split) -> list[int]:
    """Tape rows of all training targets."""
    starts = split.interactions.offsets[:-1].tolist()
    return [t for a, b in zip(starts, split.train_stop.tolist(), strict=True) for t in range(a + 1, b)]


def same(a: JaggedBatch, b: JaggedBatch) -> bool:
    return vars(a).keys() == vars(b).keys() and all(
        torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, Tensor) else x == y
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


SHAPES = [
    {"max_len": 8},
    {"max_len": 8, "window_stride": 3},
    {"max_len": 5, "window_stride": 1},
    {"max_len": 6, "context": True},
    {"max_len": 6, "window_stride": 2, "context": True},
    {"max_len": 6, "per_target": True},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_epoch_has_every_target_once_with_its_inputs(split: Split, shape: dict[str, Any]) -> None:
    traced = numbered(split)
    loader = Loader(traced, batch_size=32, seed=5, l2=True, **shape)
    assert loader.n_targets == len(targets_of(split))
    max_len, counted, padding = shape["max_len"], [], 0
    for batch in loader.batches(0):
        offsets = batch.offsets.tolist()
        sequences = [batch.items[i:j].tolist() for i, j in itertools.pairwise(offsets)]
        assert batch.offsets.dtype == torch.int32 and all(sequences)
        assert batch.max_len == max(map(len, sequences))
        assert batch.last_only == bool(shape.get("per_target"))
        rows = torch.arange(len(batch.items)) if batch.rows is None else batch.rows
        # The target follows its row's event on the tape, in the sequence that is named.
        assert torch.equal(batch.items[rows] + 1, batch.targets)
        assert torch.equal(torch.bucketize(rows, batch.offsets[1:].long(), right=True), batch.target_sequences)
        assert (rows.diff() > 0).all() and batch.n_targets == batch.n_targets_global
        histories: dict[tuple[int, int], int] = {}
        for target, sequence in zip(batch.targets.tolist(), batch.target_sequences.tolist(), strict=True):
            user = int(batch.users[sequence])
            begin = int(traced.interactions.offsets[user])
            assert begin < target < traced.train_stop[user]
            history = range(max(begin, target - max_len), target)
            padding += max_len - len(history)
            for row in history:
                histories[sequence, row] = histories.get((sequence, row), 0) + 1
            if shape.get("context"):
                assert set(history) <= set(sequences[sequence])
        for sequence, (events, user) in enumerate(zip(sequences, batch.users.tolist(), strict=True)):
            assert events == list(range(events[0], events[0] + len(events)))
            assert traced.interactions.offsets[user] <= events[0]
            if shape.get("per_target"):
                last = events[-1] + 1
                assert events[0] == max(int(traced.interactions.offsets[user]), last - max_len)
            assert sequence in batch.target_sequences
        # The L2 term, by its definition.
        assert batch.l2_items is not None and batch.l2_weights is not None
        assert batch.l2_weights.dtype == torch.float32
        expected = {row: 0 for _, row in histories}
        for (_, row), times in histories.items():
            expected[row] += times
        given: dict[int, int] = {}
        for row, weight in zip(batch.l2_items.tolist(), batch.l2_weights.tolist(), strict=True):
            given[row] = given.get(row, 0) + weight
        assert given == expected and len(batch.l2_items) == len(histories)
        padding -= batch.l2_padding
        assert padding == 0
        counted += batch.targets.tolist()
    assert sorted(counted) == targets_of(split)


@pytest.mark.parametrize("batch_size", [1, 7, 32, 200, 10_000])
def test_steps_of_an_epoch(split: Split, batch_size: int) -> None:
    loader = Loader(split, batch_size=batch_size, max_len=4, window_stride=2, seed=0)
    sizes = [batch.n_targets for batch in loader.batches(2)]
    steps = -(-loader.n_targets // batch_size)
    assert len(loader) == len(sizes) == min(steps, len(loader.windows)) and min(sizes) >= 1
    if batch_size > 7:
        # Boundaries lie at the nearest window, so within half the largest window of where they should.
        ends = np.cumsum(sizes)[:-1]
        assert np.abs(ends - batch_size * np.arange(1, steps)).max(initial=0) <= loader.windows.n_targets.max() / 2
    exact = Loader(split, batch_size=batch_size, max_len=4, seed=0, per_target=True)
    assert [b.n_targets for b in exact.batches(0)][:-1] == [batch_size] * (steps - 1)


@settings(deadline=None, max_examples=200)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=40), data=st.data())
def test_cut_leaves_no_part_empty(sizes: list[int], data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, len(sizes)))
    cumulative = np.concatenate([[0], np.cumsum(sizes)])
    goals = cumulative[-1] * np.arange(1, parts) // parts
    bounds = cut(cumulative, goals)
    assert bounds[0] == 0 and bounds[-1] == len(sizes) and len(bounds) == parts + 1
    assert (np.diff(bounds) >= 1).all()
    nearest = np.abs(cumulative[:, None] - goals).argmin(0)
    if (np.diff(nearest, prepend=0, append=len(sizes)) >= 1).all():
        assert bounds[1:-1].tolist() == nearest.tolist()


def sampled(split: Split, **options: Any) -> Loader:
    mode = options.pop("mode", "per_target")
    sampler = NegativeSampler(split, 3, mode=mode, distribution="popularity", with_log_q=True)
    return Loader(split, **{"batch_size": 40, "max_len": 8, "seed": 9, "l2": True, "sampler": sampler, **options})


def test_epochs_differ_and_resume_is_exact(split: Split) -> None:
    first, second = list(sampled(split).batches(0)), list(sampled(split, prefetch=0).batches(1))
    assert len(first) == len(second) > 4
    assert not any(same(a, b) for a, b in zip(first, second, strict=True))
    assert not any(same(a, b) for a, b in zip(first, sampled(split, seed=10).batches(0), strict=True))
    assert all(same(a, b) for a, b in zip(first, sampled(split, prefetch=0).batches(0), strict=True))
    for start in range(len(first) + 1):
        resumed = list(sampled(split).batches(0, start))
        assert len(resumed) == len(first) - start
        assert all(same(a, b) for a, b in zip(first[start:], resumed, strict=True))
    assert first[0].negatives is not None and first[0].negatives.shape == (first[0].n_targets, 3)
    seen = {(u, i) for u in range(40) for i in split.interactions.items[slice(*bounds(split, u))].tolist()}
    for batch in first:
        assert batch.negatives is not None
        users = batch.users[batch.target_sequences].tolist()
        for user, row in zip(users, batch.negatives.tolist(), strict=True):
            assert not seen & {(user, item) for item in row}


def bounds(split: Split, user: int) -> tuple[int, int]:
    return int(split.interactions.offsets[user]), int(split.train_stop[user])


@pytest.mark.parametrize("mode", ["per_target", "shared"])
@pytest.mark.parametrize("batch_size", [3, 60])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_each_batch(split: Split, world_size: int, batch_size: int, mode: str) -> None:
    options: dict[str, Any] = {"mode": mode, "batch_size": batch_size, "window_stride": 2, "max_len": 4}
    alone = list(sampled(split, **options).batches(1))
    parts = [sampled(split, **options, rank=rank, world_size=world_size).batches(1) for rank in range(world_size)]
    largest = int(sampled(split, **options).windows.n_targets.max())
    names = ["items", "users", "targets", "l2_items", "l2_weights"]
    names += ["negatives", "log_q"] if mode == "per_target" else []
    for i, (whole, *shares) in enumerate(zip(alone, *parts, strict=True)):
        step = len(alone) + i  # of the run: this is its second epoch
        assert [share.rng.tolist() for share in shares] == [[9, step * world_size + r] for r in range(world_size)]
        for name in names:
            assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name)), name
        assert sum(share.l2_padding for share in shares) == whole.l2_padding
        sizes = [share.n_targets for share in shares]
        assert all(share.n_targets_global == whole.n_targets == sum(sizes) for share in shares)
        n_windows = len(whole.users)
        assert sum(size == 0 for size in sizes) == max(0, world_size - n_windows)
        if n_windows >= 3 * world_size:
            assert max(sizes) - min(sizes) <= 2 * largest
        for share in shares:
            assert share.offsets[0] == 0 and len(share.offsets) == len(share.users) + 1
            assert share.offsets[-1] == len(share.items)
            assert share.negatives is not None and whole.negatives is not None
            if mode == "shared":
                assert torch.equal(share.negatives, whole.negatives)
            if share.n_targets == 0:
                assert share.max_len == 0 and share.items.shape == (0,) and share.rows is None


def test_no_target_no_batch() -> None:
    loader = Loader(tape([[1], [], [2]], 3), batch_size=4, max_len=3, seed=0)
    assert len(loader) == loader.n_targets == 0 and list(loader.batches(0)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_len": 0}, "max_len is 0"),
        ({"window_stride": 9}, "stride is 9"),
        ({"rank": 2, "world_size": 2}, "rank is 2 of world_size 2"),
        ({"prefetch": -1}, "prefetch is -1"),
    ],
)
def test_out_of_range(split: Split, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(split, **{"batch_size": 4, "max_len": 8, "seed": 0, **options})
    loader = Loader(split, batch_size=64, max_len=8, seed=0)
    with pytest.raises(ValueError, match="epoch is -1"):
        loader.batches(-1)
    with pytest.raises(ValueError, match=r"start is 1000, expected 0 \.\.\. "):
        loader.batches(0, 1000)


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "fastseq-prefetch"}


def test_a_sampler_error_reaches_the_loop_with_its_traceback() -> None:
    data = tape([[0, 1, 2, 3, 0], [0, 1]], 4)
    loader = Loader(data, batch_size=1, max_len=5, seed=0, sampler=NegativeSampler(data, 1))
    with pytest.raises(ValueError, match=r"user 0 .* has seen every one of the 4 items") as raised:
        list(loader.batches(0))
    frames = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert "_assemble" in frames and not threads()


def test_the_thread_ends_with_the_iteration(split: Split) -> None:
    loader = Loader(split, batch_size=1, max_len=8, seed=0, prefetch=1)
    finished = loader.batches(0)
    assert not threads()  # not before the first batch is asked for
    assert len(list(finished)) == len(loader) and not threads()
    for end in ("close", "collect", "break"):
        batches = loader.batches(0)
        next(batches)
        assert len(threads()) == 1
        if end == "close":
            batches.close()
        elif end == "break":
            for _ in batches:
                break
            batches.close()
        else:
            del batches
            gc.collect()
        assert not threads(), end


def test_stays_at_most_depth_plus_one_ahead() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    items = prefetched(source(), 3)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert len(made) == 5  # one used, three queued, one waiting for room
    assert list(items) == list(range(1, 100)) and not threads()


def test_an_unfinished_iteration_does_not_hang_the_interpreter() -> None:
    program = (
        "from itertools import count; from fastseq.data.prefetch import prefetched\n"
        "kept = prefetched(count(), 2); next(kept); print('leaving')"
    )
    done = run_python("-c", program)
    assert done.stdout == "leaving\n" and done.stderr == ""
