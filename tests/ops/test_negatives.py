"""Negative sampling: C++ and reference draw the same items, and those follow the distribution they should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastseq.ops as ops
from fastseq.data.negatives import alias_table, integer_masses
from fastseq.ops.philox import SITE_NEGATIVES
from fastseq.ops.reference.philox import philox

from .backends import moved, needs_triton
from .compare import chi_square_z

N_ITEMS = 37


def lists(*seen: list[int]) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([0] + [len(items) for items in seen])
    return sizes.cumsum(0), torch.tensor([item for items in seen for item in items], dtype=torch.int64)


def problem(targets: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Users who have seen nothing, a little, much, all but one (that is a positive once), and all but two items."""
    generator = np.random.default_rng(seed)
    sizes = [0, 1, 2, 7, 16, 30, N_ITEMS - 2, 0]
    seen = [sorted(generator.choice(N_ITEMS, size, replace=False).tolist()) for size in sizes]
    seen.append([i for i in range(N_ITEMS) if i != 5])
    users = torch.from_numpy(generator.integers(0, len(seen), targets))
    positives = torch.from_numpy(generator.integers(0, N_ITEMS, targets))
    positives[users == len(seen) - 1] = 6  # seen, so that item 5 is left
    offsets, items = lists(*seen)
    return users, positives, offsets, items


def table(skew: float, zeros: int = 0) -> dict[str, Any]:
    weights = np.exp(-skew * np.arange(N_ITEMS))
    weights[N_ITEMS - zeros :] = 0
    probability, alias = alias_table(integer_masses(weights))
    return {"probability": probability, "alias": alias}


TABLES: dict[str, dict[str, Any]] = {"uniform": {}, "even": table(0.05), "skewed": table(0.5)}


def draw(backend: str, *arguments: Any, op: str = "sample_negatives", **options: Any) -> Tensor:
    positional = moved(dict(enumerate(arguments)), backend).values()
    with ops.set_backend(backend), ops.record_served() as served:
        result = getattr(ops, op)(*positional, **moved(options, backend))
    assert served == [(op, backend)]
    return result.cpu()


@pytest.mark.parametrize("distribution", TABLES)
@pytest.mark.parametrize(("targets", "k"), [(0, 3), (1, 1), (33, 0), (50, 1), (47, 6), (16, 67)])
def test_cpp_equals_reference_for_any_threads(distribution: str, targets: int, k: int, poisoned_empty: None) -> None:
    users, positives, offsets, items = problem(targets)
    rng = ops.make_rng(-(2**40) - 3, 2**35 + 9)
    arguments = (users, positives, offsets, items, k, N_ITEMS, rng)
    options = {**TABLES[distribution], "first": 2**32 - 20}
    expected = draw("reference", *arguments, **options)
    assert expected.shape == (targets, k) and expected.dtype == torch.int64
    for threads in (0, 1, 2, 8):
        assert torch.equal(draw("cpu", *arguments, **options, threads=threads), expected)
    for n in range(targets):
        seen = items[offsets[users[n]] : offsets[users[n] + 1]]
        assert not torch.isin(expected[n], torch.cat([seen, positives[n : n + 1]])).any()
        assert ((expected[n] >= 0) & (expected[n] < N_ITEMS)).all()


def test_uniform_takes_the_item_of_that_rank() -> None:
    users, positives, offsets, items = problem(40)
    rng = ops.make_rng(7, 3)
    drawn = draw("cpu", users, positives, offsets, items, 5, N_ITEMS, rng, first=11)
    for n in range(40):
        excluded = {*items[offsets[users[n]] : offsets[users[n] + 1]].tolist(), int(positives[n])}
        left = [i for i in range(N_ITEMS) if i not in excluded]
        words = philox(rng, torch.arange(2), torch.tensor(11 + n), torch.tensor(SITE_NEGATIVES)).flatten()
        assert drawn[n].tolist() == [left[int(word) * len(left) >> 32] for word in words[:5]]


@pytest.mark.parametrize("distribution", TABLES)
def test_a_negative_depends_on_nothing_beside_it(distribution: str) -> None:
    users, positives, offsets, items = problem(60)
    rng = ops.make_rng(1, 2)
    options = TABLES[distribution]
    whole = draw("cpu", users, positives, offsets, items, 9, N_ITEMS, rng, **options)
    fewer = draw("cpu", users, positives, offsets, items, 4, N_ITEMS, rng, **options)
    part = draw("cpu", users[21:], positives[21:], offsets, items, 9, N_ITEMS, rng, **options, first=21)
    assert torch.equal(whole[:, :4], fewer)
    assert torch.equal(whole[21:], part)
    other = draw("cpu", users, positives, offsets, items, 9, N_ITEMS, ops.make_rng(1, 3), **options)
    assert not torch.equal(whole, other)


@pytest.mark.parametrize(
    ("distribution", "seen"),
    [
        ("uniform", [0, 3, 4, 36]),
        ("even", [0, 3, 4, 36]),
        ("even", []),
        ("skewed", list(range(1, 16))),
        ("skewed", list(range(26))),  # 2e-6 of the mass is left: rejection fails, the exact draw is all there is
    ],
)
def test_follows_the_distribution_given_what_is_excluded(distribution: str, seen: list[int]) -> None:
    positive = 30
    weights = np.exp(-0.05 * np.arange(N_ITEMS)) if distribution == "even" else np.ones(N_ITEMS)
    if distribution == "skewed":
        weights = np.exp(-0.5 * np.arange(N_ITEMS))
    weights[[*seen, positive]] = 0
    offsets, items = lists([1], seen)
    n = 4000
    arguments = (torch.ones(n, dtype=torch.int64), torch.full((n,), positive), offsets, items, 25, N_ITEMS)
    drawn = draw("cpu", *arguments, ops.make_rng(3, 1), **TABLES[distribution])
    q = weights / weights.sum()
    q[q * drawn.numel() < 5] = 0
    drawn = drawn[torch.from_numpy(q)[drawn] > 0]
    assert drawn.numel() > 0.999 * 25 * n
    assert chi_square_z(drawn, q / q.sum()) < 4


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("distribution", ["uniform", "even"])
def test_shared(distribution: str, backend: str, poisoned_empty: None) -> None:
    rng = ops.make_rng(5, 6)
    options = TABLES[distribution]
    for size in (0, 1, 63, 700):
        arguments = {"op": "sample_shared_negatives", **options}
        expected = draw("reference", size, N_ITEMS, rng, **arguments)
        for threads in (1, 8):
            drawn = draw(backend, size, N_ITEMS, rng, threads=threads, **arguments)
            assert torch.equal(drawn, expected) and drawn.shape == (size,)
    weights = np.exp(-0.05 * np.arange(N_ITEMS)) if options else np.ones(N_ITEMS)
    assert chi_square_z(ops.sample_shared_negatives(100_000, N_ITEMS, rng, **options), weights / weights.sum()) < 4


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("options", [{}, table(0.05), table(0.05, zeros=1)], ids=["uniform", "alias", "no weight"])
def test_nothing_left_names_the_user(backend: str, options: dict[str, Any]) -> None:
    # User 2 has seen all but item 36: it is the positive of target 3, and without weight in the last case.
    offsets, items = lists([], [1], list(range(36)))
    users, positives = torch.tensor([0, 1, 1, 2, 2]), torch.tensor([36, 1, 2, 36, 36])
    with pytest.raises(ValueError, match=r"user 2 \(target 3\) has seen every one of the 37 items.*leave this user"):
        draw(backend, users, positives, offsets, items, 2, N_ITEMS, ops.make_rng(0), **options)
    assert draw(backend, users, positives, offsets, items, 0, N_ITEMS, ops.make_rng(0), **options).shape == (5, 0)
    fits = draw(backend, users[:3], positives[:3], offsets, items, 2, N_ITEMS, ops.make_rng(0), **options)
    assert fits.shape == (3, 2)


@needs_triton
@pytest.mark.parametrize("distribution", TABLES)
@pytest.mark.parametrize(("targets", "k"), [(0, 3), (1, 1), (33, 0), (300, 1), (47, 6), (5, 67)])
def test_triton_equals_cpp(
    distribution: str, targets: int, k: int, poisoned_empty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of 64 elements, walks of 16 items: users who have seen nearly everything need the exact draw."""
    from fastseq.kernels import negatives

    monkeypatch.setattr(negatives, "TILE", 64)
    monkeypatch.setattr(negatives, "WALK_ITEMS", 16)
    arguments = (*problem(targets), k, N_ITEMS, ops.make_rng(-(2**40) - 3, 2**35 + 9))
    options = {**TABLES[distribution], "first": 2**32 - 20}
    assert torch.equal(draw("triton", *arguments, **options), draw("cpu", *arguments, **options))


@needs_triton
def test_triton_exact_draw() -> None:
    """2e-6 of the mass is left: rejection fails, the exact draw is all there is."""
    offsets, items = lists([1], list(range(26)))
    n = 40
    arguments = (torch.ones(n, dtype=torch.int64), torch.full((n,), 30), offsets, items, 5, N_ITEMS, ops.make_rng(3, 1))
    options = TABLES["skewed"]
    assert torch.equal(draw("triton", *arguments, **options), draw("cpu", *arguments, **options))


@needs_triton
@pytest.mark.parametrize("options", [{}, table(0.05), table(0.05, zeros=1)], ids=["uniform", "alias", "no weight"])
def test_triton_what_the_cpu_refuses(options: dict[str, Any]) -> None:
    """Nothing left to draw, no such user or positive: -1, which no row of a table has; the others are drawn."""
    offsets, items = lists([], [1], list(range(36)))
    users, positives = torch.tensor([0, 2, 1, 3, 0, -1]), torch.tensor([36, 36, 2, 1, 37, 1])
    with ops.check_data(False):
        drawn = draw("triton", users, positives, offsets, items, 2, N_ITEMS, ops.make_rng(0), **options)
    assert (drawn == -1).all(1).tolist() == [False, True, False, True, True, True]
    assert (drawn[[0, 2]] >= 0).all()


@needs_triton
@pytest.mark.parametrize("distribution", TABLES)
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_a_target_that_does_not_count_has_no_draw(backend: str, distribution: str) -> None:
    """It gets item 0, whatever its user has seen; the others draw what they draw without it."""
    users, positives, offsets, items = problem(40)
    full = torch.tensor([offsets[-1], offsets[-1] + N_ITEMS])  # one more user, who has seen everything
    offsets, items = torch.cat([offsets, full[1:]]), torch.cat([items, torch.arange(N_ITEMS)])
    rest = (offsets, items, 5, N_ITEMS, ops.make_rng(3, 4))
    expected = draw("cpu", users, positives, *rest, **TABLES[distribution])
    unused = torch.zeros(40, dtype=torch.bool)
    unused[[0, 7, 38, 39]] = True
    given = draw(backend, users.where(~unused, len(offsets) - 2), positives.where(~unused, -100), *rest,
                 **TABLES[distribution])  # fmt: skip
    assert torch.equal(given, expected.where(~unused[:, None], 0))
    none = torch.full((40,), -100)
    assert not draw(backend, users, none, *rest, **TABLES[distribution]).any()
