"""The sampler: never a seen item, distributed as its reported q says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseq.data.negatives import NegativeSampler, alias_table, integer_masses
from fastseq.data.readers import from_sequences
from fastseq.data.split import Split, leave_one_out
from fastseq.errors import DataError
from fastseq.ops import make_rng
from tests.ops.compare import chi_square_z

from .tapes import random_tape, tape

DISTRIBUTIONS: list[dict[str, Any]] = [
    {"distribution": "uniform"},
    {"distribution": "popularity", "alpha": 0.0},
    {"distribution": "popularity", "alpha": 0.75},
    {"distribution": "popularity", "alpha": 2.0},
]


def split_of(histories: list[list[int]], n_items: int, held_out: int) -> Split:
    """The last ``held_out`` events of every user are test targets."""
    data = tape(histories, n_items)
    stop = np.maximum(data.offsets[1:] - held_out, data.offsets[:-1])
    return Split(data, stop, stop)


@settings(deadline=None, max_examples=150)
@given(
    histories=st.lists(st.lists(st.integers(0, 11), max_size=15), min_size=1, max_size=6),
    options=st.sampled_from(DISTRIBUTIONS),
    held_out=st.integers(0, 2),
    seed=st.integers(0, 2**40),
)
def test_never_a_seen_item_and_q_sums_to_one(
    histories: list[list[int]], options: dict[str, Any], held_out: int, seed: int
) -> None:
    n_items = 14
    split = split_of(histories, n_items, held_out)
    training = [history[: max(0, len(history) - held_out)] for history in histories]
    counts = np.bincount([i for history in training for i in history] or [0], minlength=n_items)
    if not any(training):
        return
    alpha = options.get("alpha", 0.0)
    weights = counts.astype(np.float64) ** alpha
    sampler = NegativeSampler(split, 7, with_log_q=True, **options)
    pairs = [(u, t) for u in range(len(histories)) for t in range(n_items)]
    left = {(u, t): [i for i in range(n_items) if i not in training[u] and i != t and weights[i]] for u, t in pairs}
    for pair in (pair for pair in pairs if not left[pair]):
        with pytest.raises(ValueError, match=rf"user {pair[0]} \(target 0\) has seen every one"):
            sampler.sample(torch.tensor([pair[0]]), torch.tensor([pair[1]]), make_rng(seed))
    pairs = [pair for pair in pairs if left[pair]]
    if not pairs:
        return
    users, targets = torch.tensor(pairs).unbind(1)
    negatives, log_q = sampler.sample(users, targets, make_rng(seed))
    assert log_q is not None and log_q.dtype == torch.float32 and negatives.shape == log_q.shape == (len(pairs), 7)
    everything = torch.arange(n_items).expand(len(pairs), -1)
    q = sampler.log_q(users, targets, everything).double().exp()
    for pair, items, row in zip(pairs, negatives.tolist(), q, strict=True):
        assert set(items) <= set(left[pair])
        expected = torch.zeros(n_items, dtype=torch.float64)
        expected[left[pair]] = torch.from_numpy(weights)[left[pair]]
        torch.testing.assert_close(row, expected / expected.sum(), rtol=2e-6, atol=0)
    torch.testing.assert_close(log_q.double().exp(), q.gather(1, negatives), rtol=0, atol=0)


@pytest.mark.parametrize("options", DISTRIBUTIONS)
@pytest.mark.parametrize("mode", ["per_target", "shared"])
def test_chi_square_against_reported_q(mode: Any, options: dict[str, Any]) -> None:
    data = random_tape(30, 25, 40, seed=3)
    sampler = NegativeSampler(data, 50, mode=mode, with_log_q=True, **options)
    user = int(np.argmax(np.diff(data.offsets)))
    n = 1500
    users = torch.full((n,), user)
    targets = torch.full((n,), int(data.items[data.offsets[user]]))
    everything = torch.arange(25) if mode == "shared" else torch.arange(25)[None]
    q = sampler.log_q(users[:1], targets[:1], everything).double().exp().flatten().numpy()
    assert q.sum() == pytest.approx(1, abs=1e-6)
    draws = [sampler.sample(users, targets, make_rng(1, step)) for step in range(1 if mode == "per_target" else n)]
    drawn = torch.cat([negatives for negatives, _ in draws])
    assert abs(chi_square_z(drawn, q)) < 4
    even = (q > 0) / (q > 0).sum()
    if q[q > 0].std() > 0.01:  # the test can tell distributions apart
        assert chi_square_z(drawn, even) > 20
    for negatives, log_q in draws[:3]:
        assert log_q is not None
        np.testing.assert_allclose(log_q.exp(), q[negatives], rtol=1e-5)


def test_who_has_nothing_left_to_draw_is_named_beforehand() -> None:
    data = from_sequences({"a": [1, 2, 3, 1], "b": [1, 2], "c": [3, 2, 1], "d": [1, 3, 2]})
    split = leave_one_out(data, validation=False)  # a still sees all three in training, c and d only two
    with pytest.raises(DataError, match=r"user 'a' has seen every one of the 3 items that could be drawn"):
        NegativeSampler(split, 1).check_drawable()
    with pytest.raises(DataError, match=r"user 'a' \(and 2 more users\) has seen"):
        NegativeSampler(data, 1, distribution="popularity").check_drawable()
    NegativeSampler(data, 1, mode="shared").check_drawable()
    one = from_sequences({"a": [1], "b": [2, 3, 2, 2]})  # a user without a target needs no negative
    NegativeSampler(one, 1).check_drawable()
    only = split_of([[0], [0, 0, 0]], 3, 0)
    with pytest.raises(DataError, match="user 1 has seen every one of the 1 items"):
        NegativeSampler(only, 1, distribution="popularity").check_drawable()


def test_what_is_held_out_is_neither_seen_nor_popular() -> None:
    split = split_of([[0, 1, 2, 3], [1, 0, 0, 3]], 4, 1)
    negatives, log_q = NegativeSampler(split, 20).sample(torch.tensor([0]), torch.tensor([2]), make_rng(0))
    assert set(negatives.flatten().tolist()) == {3} and log_q is None
    popular = NegativeSampler(split, 300, mode="shared", distribution="popularity", alpha=1.0)
    drawn, _ = popular.sample(torch.empty(0), torch.empty(0), make_rng(0))
    assert set(drawn.tolist()) == {0, 1, 2}


@settings(deadline=None)
@given(weights=st.lists(st.floats(0, 1e300) | st.just(0.0) | st.floats(0, 1e-300), min_size=1, max_size=40).filter(any))
def test_alias_table_holds_the_masses_exactly(weights: list[float]) -> None:
    masses = integer_masses(np.array(weights))
    n = len(weights)
    assert masses.sum() == n << 32 and ((masses > 0) == (np.array(weights) > 0)).all()
    shares = np.array(weights) / max(weights)
    np.testing.assert_allclose(masses / (n << 32), shares / shares.sum(), rtol=1e-12, atol=2 / (n << 32) * n)
    probability, alias = alias_table(masses)
    held = probability.clone()
    held.index_add_(0, alias, 2**32 - probability)
    assert torch.equal(held, torch.from_numpy(masses))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"mode": "each"}, "mode is 'each', expected one of per_target, shared"),
        ({"distribution": "zipf"}, "distribution is 'zipf', expected one of uniform, popularity"),
        ({"alpha": -1.0}, r"alpha is -1\.0"),
        ({"alpha": math.nan}, "alpha is nan"),
    ],
)
def test_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NegativeSampler(tape([[0, 1]], 3), **{"size": 2, **options})
    with pytest.raises(ValueError, match="weights must be finite"):
        integer_masses(np.array([1.0, math.inf]))


@pytest.mark.parametrize("options", DISTRIBUTIONS)
def test_shared_unseen_masks_what_each_user_has_seen(options: dict[str, Any]) -> None:
    """The shared set, with the row's target (which every loss masks) exactly where the user has seen the item."""
    split = leave_one_out(from_sequences([[0, 1, 2, 3, 9], [4, 5, 5, 6, 9], [7, 8, 0, 2, 9]]), validation=False)
    users, targets = torch.tensor([0, 2, 1, 0]), torch.tensor([1, 8, 6, 3])
    plain = NegativeSampler(split, 64, mode="shared", with_log_q=True, **options)
    masked = NegativeSampler(split, 64, mode="shared_unseen", with_log_q=True, **options)
    shared, shared_q = plain.sample(users, targets, make_rng(1, 2))
    rows, log_q = masked.sample(users, targets, make_rng(1, 2))
    offsets, items = split.seen()
    for row, user, target, q in zip(rows, users.tolist(), targets.tolist(), log_q, strict=True):  # type: ignore[arg-type]
        seen = set(items[offsets[user] : offsets[user + 1]].tolist())
        assert row.tolist() == [target if item in seen else item for item in shared.tolist()]
        kept = row == shared
        assert torch.equal(q[kept], shared_q[kept])  # type: ignore[index]
