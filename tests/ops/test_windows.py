"""gather_windows: every implementation against a walk over the windows, also where sizes are capacities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseq.data.windows import pack_windows
from fastseq.ops import gather_windows, record_served, set_backend
from fastseq.ops.windows import Gathered

from .backends import moved, needs_triton

PADDING = 99


def problem(lengths: list[int], shape: dict[str, Any], seed: int) -> dict[str, Any]:
    """The arguments but for place and sizes: a tape of these histories, its windows shuffled."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    windows = pack_windows(offsets, offsets[1:], **shape)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(windows))
    reach = np.maximum(offsets[windows.user], windows.first_target - shape["max_len"])
    sizes = windows.stop - windows.start, windows.n_targets, windows.stop - reach
    arrays = [
        generator.integers(0, PADDING, offsets[-1]), offsets, windows.user, windows.start, windows.stop,
        windows.first_target, order, *(np.concatenate([[0], np.cumsum(size[order])]) for size in sizes),
    ]  # fmt: skip
    names = ("tape", "user_offsets", "users", "starts", "stops", "first_targets", "order", "inputs_before")
    tensors = [torch.from_numpy(array) for array in arrays]
    return dict(zip((*names, "targets_before", "history_before"), tensors, strict=True)) | {"padding_idx": PADDING}


def expected(data: dict[str, Any], low: int, high: int, sizes: dict[str, int], max_len: int) -> Gathered:
    """Window by window, as the contract says it."""
    tape, offsets = data["tape"].tolist(), [0]
    items: list[int] = []
    users: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    sequences: list[int] = []
    target_users: list[int] = []
    history: list[int] = []
    weights: list[int] = []
    for b, w in enumerate(data["order"][low:high].tolist()):
        user, start, stop, first = (int(data[n][w]) for n in ("users", "starts", "stops", "first_targets"))
        for target in range(first, stop + 1):
            rows.append(len(items) + target - 1 - start)
            targets.append(tape[target])
            sequences.append(b)
            target_users.append(user)
        begin = int(data["user_offsets"][user])
        for p in range(max(begin, first - max_len), stop):
            history.append(tape[p])
            weights.append(sum(max(begin, t - max_len) <= p < t for t in range(first, stop + 1)))
        items += tape[start:stop]
        users.append(user)
        offsets.append(len(items))
    further = [(len(offsets) - 1, len(items))]  # sequence and row
    while offsets[-1] < sizes["n_events"]:
        for _ in range(min(max_len, sizes["n_events"] - offsets[-1])):
            further.append((len(offsets) - 1, len(items)))
            items.append(PADDING)
        offsets.append(len(items))
    further = further[1:]
    for i in range(sizes["n_targets"] - len(targets)):
        sequence, row = further[min(i, len(further) - 1)]
        rows.append(row)
        targets.append(-100)
        sequences.append(sequence)
        target_users.append(0)
    n_sequences = sizes["n_sequences"]
    n_history = sizes["n_history"] if data["history_before"] is not None else 0
    offsets += [len(items)] * (n_sequences + 1 - len(offsets))
    users += [0] * (n_sequences - len(users))
    history, weights = (
        [] if not n_history else x + [y] * (n_history - len(x)) for x, y in ((history, PADDING), (weights, 0))
    )
    lists = items, offsets, users, rows, targets, sequences, target_users, history, weights
    dtypes = {1: torch.int32, 8: torch.float32}
    return Gathered(*(torch.tensor(x, dtype=dtypes.get(i, torch.int64)) for i, x in enumerate(lists)))


SHAPES: list[dict[str, Any]] = [
    {"max_len": 4},
    {"max_len": 5, "stride": 2},
    {"max_len": 3, "stride": 2, "context": True},
    {"max_len": 4, "per_target": True},
]


@needs_triton
@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 15), min_size=1, max_size=12).filter(lambda x: max(x) > 1),
    shape=st.sampled_from(SHAPES),
    l2=st.booleans(),
    data=st.data(),
)
def test_every_implementation_gives_the_batch(
    lengths: list[int], shape: dict[str, Any], l2: bool, data: st.DataObject
) -> None:
    arguments = problem(lengths, shape, seed=len(lengths))
    if not l2:
        arguments["history_before"] = None
    bounds = st.integers(0, len(arguments["order"]))
    low, high = sorted((data.draw(bounds), data.draw(bounds)))
    sums = ("inputs_before", "targets_before") + ("history_before",) * l2
    own = [int(arguments[name][high] - arguments[name][low]) for name in sums] + [0] * (not l2)
    events, targets, history = own
    spare = data.draw(st.just(0) | st.integers(1, 20))
    room = high - low + -(-spare // shape["max_len"])
    sizes = {
        "n_events": events + spare,
        "n_sequences": room + data.draw(st.integers(0, 3)),
        "n_targets": targets + (data.draw(st.integers(0, 25)) if spare else 0),
        "n_history": history + (data.draw(st.integers(0, 9)) if l2 else 0),
    }
    arguments |= {"place": torch.tensor([low, high]), "max_len": shape["max_len"], **sizes}
    wanted = expected(arguments, low, high, sizes, shape["max_len"])
    for backend in ("reference", "cpu", "triton"):
        with set_backend(backend), record_served() as served:
            given = gather_windows(**moved(arguments, backend))
        assert served == [("gather_windows", backend)]
        for name, x, y in zip(Gathered._fields, given, wanted, strict=True):
            assert x.dtype == y.dtype and torch.equal(x.cpu(), y), (backend, name, x, y)


@needs_triton
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_all_of_a_batch_is_written(backend: str, poisoned_empty: None) -> None:
    """Blocks of a program are smaller than these outputs; no window at all is a batch too."""
    arguments = problem([40] * 10, {"max_len": 30}, 0)
    for low, high in ((3, 14), (5, 5)):
        sizes = {"n_events": 700, "n_sequences": 300, "n_targets": 800, "n_history": 500}
        given = gather_windows(**moved(arguments | {"place": torch.tensor([low, high])}, backend), **sizes, max_len=30)
        for x, y in zip(given, expected(arguments, low, high, sizes, 30), strict=True):
            assert torch.equal(x.cpu(), y)
