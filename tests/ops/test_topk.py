"""topk: the CPU path against the reference, exactly: scores are small integers, so ties abound and sums are exact."""

from __future__ import annotations

import importlib.util
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastseq._process import peak_rss_mb, reset_peak_rss
from fastseq.ops import check_data, item_codes, record_served, set_backend, topk
from fastseq.ops.cpu import topk as cpu
from fastseq.ops.topk import FEW_USERS
from tests.ops.backends import check_same_on_threads, moved, needs_triton
from tests.ops.compare import assert_as_accurate

FAST = ["cpu", pytest.param("triton", marks=needs_triton)]


def integers(rows: int, items: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randint(-2, 3, (rows, 6), generator=generator).to(dtype)
    return h, torch.randint(-2, 3, (items, 6), generator=generator).to(dtype)


def seen_lists(rows: int, items: int, longest: int, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (rows,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return dict(seen_offsets=offsets, seen_items=torch.randint(0, items, (int(offsets[-1]),), generator=generator))


def assert_same(h: Tensor, weight: Tensor, k: int, backend: str = "cpu", **more: Tensor) -> tuple[Tensor, Tensor]:
    """``backend`` gives what the reference gives, bit for bit."""
    arguments = {"h": h, "weight": weight, "k": k, **more}
    with set_backend(backend), record_served() as calls:
        scores, ids = (x.cpu() for x in topk(**moved(arguments, backend)))
    assert calls == [("topk", backend)]
    with set_backend("reference"):
        expected = topk(**arguments)
    assert torch.equal(ids, expected[1]) and torch.equal(scores, expected[0])
    return scores, ids


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """9 users at a time, so that of 11 two are left, and parts of copied items of a few hundred bytes."""
    monkeypatch.setattr(cpu, "USERS_AT_ONCE", FEW_USERS + 1)
    monkeypatch.setattr(cpu, "PART_BYTES", 100 * 6 * 4)


@pytest.fixture
def small_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists and tiles of 16 items, so that every boundary is crossed."""
    if importlib.util.find_spec("triton") is not None:
        monkeypatch.setattr(importlib.import_module("fastseq.kernels.topk"), "SIZES", (16,))
        monkeypatch.setattr(importlib.import_module("fastseq.kernels.topk"), "MERGED", 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 7, 64, 1000])
@pytest.mark.parametrize("items", [1, 63, 64, 65, 333])
def test_matches_reference(items: int, k: int, dtype: torch.dtype, small_tiles: None, poisoned_empty: None) -> None:
    h, weight = integers(11, items, dtype)
    bias = torch.randint(-3, 4, (items,)).to(dtype)
    scores, ids = assert_same(h, weight, k, bias=bias, **seen_lists(11, items, 40))
    assert scores.dtype == dtype and ids.dtype == torch.int64
    assert_same(h, weight, k)
    assert_same(h, weight.t().contiguous().t(), k, bias=bias, **seen_lists(11, items, 40))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(1, 90), st.integers(1, 30), st.integers(0, 120), st.integers(0, 2**30))
def test_any_seen_lists(rows: int, items: int, k: int, longest: int, seed: int) -> None:
    h, weight = integers(rows, items, seed=seed)
    seen = seen_lists(rows, items, longest, seed)
    _, ids = assert_same(h, weight, k, **seen)
    for row in range(rows):
        listed = seen["seen_items"][seen["seen_offsets"][row] : seen["seen_offsets"][row + 1]]
        assert not torch.isin(ids[row], listed).any()


@pytest.mark.parametrize("backend", FAST)
def test_real_scores(backend: str, small_lists: None) -> None:
    rows, items, k = (50, 700, 20) if backend == "cpu" else (20, 130, 9)
    h, weight, bias = torch.randn(rows, 70), torch.randn(items, 70), torch.randn(items)
    with set_backend(backend):
        scores, ids = (x.cpu() for x in topk(**moved({"h": h, "weight": weight, "k": k, "bias": bias}, backend)))
    exact = (h.double() @ weight.double().T + bias).topk(k)
    assert_as_accurate(scores, (h @ weight.T + bias).topk(k).values, exact.values, 2, "scores")
    assert torch.equal(ids, exact.indices)


@pytest.mark.parametrize("backend", FAST)
def test_equal_scores_keep_the_smaller_ids(backend: str, small_tiles: None, small_lists: None) -> None:
    """At the boundary of the k-th too, and across tiles; 0 and -0 are equal."""
    weight = torch.zeros(300, 2)
    weight[::2] = -0.0
    weight[[250, 120]] = 1.0
    seen = dict(seen_offsets=torch.tensor([0, 0, 4], dtype=torch.int32), seen_items=torch.tensor([2, 0, 250, 2]))
    _, ids = assert_same(torch.ones(2, 2), weight, 5, backend, **seen)
    assert ids.tolist() == [[120, 250, 0, 1, 2], [120, 1, 3, 4, 5]]


@pytest.mark.parametrize("users", [1, 8, 9, 17, 64, 65])
def test_equal_items_tie_wherever_they_stand(users: int) -> None:
    """Of scores that depend on the order of their sums, which the end of a block could change."""
    h, weight = torch.randn(users, 33), torch.randn(205, 33)
    weight[200:] = weight[:5]
    scores, ids = topk(h, weight, 205)
    of_items = scores.gather(1, ids.argsort(1))
    assert torch.equal(of_items[:, 200:], of_items[:, :5])


def test_fewer_than_k_unseen() -> None:
    seen = dict(seen_offsets=torch.tensor([0, 3, 5]), seen_items=torch.tensor([0, 1, 2, 2, 0]))
    scores, ids = assert_same(torch.ones(2, 1), torch.tensor([[1.0], [2.0], [3.0]]), 2, **seen)
    assert ids.tolist() == [[-1, -1], [1, -1]]
    assert scores.tolist() == [[float("-inf")] * 2, [2.0, float("-inf")]]


@pytest.mark.parametrize("backend", FAST)
def test_infinite_bias_bars_and_forces_items(backend: str) -> None:
    bias = torch.tensor([0.0, float("-inf"), float("inf"), 0.0])
    _, ids = assert_same(torch.ones(1, 1), torch.ones(4, 1), 4, backend, bias=bias)
    assert ids.tolist() == [[2, 0, 3, -1]]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_nan_is_an_error_that_names_the_score(backend: str, small_tiles: None) -> None:
    h, weight = integers(7, 250)
    weight[230, 1] = float("nan")
    with set_backend(backend), pytest.raises(ValueError, match="row 0 and item 230 is NaN"):
        topk(h, weight, 3)
    h[0:6] = float("nan")
    seen = dict(seen_offsets=torch.tensor([0, 250, *[500] * 6]), seen_items=torch.arange(250).repeat(2))
    with set_backend(backend), pytest.raises(ValueError, match="row 2 and item 0 is NaN"):
        topk(h, weight, 3, **seen)  # users 0 and 1 have seen everything: nothing of theirs is ranked


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("rows, items", [(0, 5), (3, 0), (0, 0)])
def test_nobody_or_nothing(rows: int, items: int, backend: str) -> None:
    scores, ids = assert_same(torch.ones(rows, 6), torch.ones(items, 6), 2, backend)
    assert scores.shape == ids.shape == (rows, 2)


@pytest.mark.parametrize("users", [1, 8, 40])
def test_memory_does_not_grow_with_users_times_items(users: int) -> None:
    """Not even by one number for each item: 32 MB here, of items that lie as they are read."""
    h, weight = torch.randn(users, 2), torch.randn(4_000_000, 2)
    seen = seen_lists(users, len(weight), 30)
    topk(h, weight[:1000], 3)
    reset_peak_rss()
    before = peak_rss_mb()
    topk(h, weight, 10, **seen)
    assert peak_rss_mb() - before < 8


@pytest.mark.parametrize("users", [1, 8, 9, 17, 64, 65])
def test_results_do_not_depend_on_threads(users: int) -> None:
    """Of scores that are not exact in any order of summation, as whole numbers would be."""
    generator = torch.Generator().manual_seed(users)
    h, weight = (torch.randn(rows, 128, generator=generator) for rows in (users, 5003))
    check_same_on_threads(lambda: topk(h, weight, 9, **seen_lists(users, 5003, 30)))
    codes = item_codes(weight)
    check_same_on_threads(lambda: topk(h, weight, 9, codes=codes, **seen_lists(users, 5003, 30)))


def test_no_gradient() -> None:
    h, weight = integers(3, 20)
    scores, _ = topk(h.requires_grad_(), weight.requires_grad_(), 4)
    assert not scores.requires_grad


@needs_triton
@pytest.mark.parametrize("programs", [1, 3])
@pytest.mark.parametrize(("rows", "items", "k"), [(1, 1, 1), (3, 16, 16), (17, 65, 7), (2, 90, 37)])
def test_triton(
    rows: int, items: int, k: int, programs: int, small_lists: None, poisoned_empty: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One pass and three; the catalogue whole and in three parts, merged two at a time."""
    from fastseq.kernels import topk as kernel

    monkeypatch.setattr(kernel, "PROGRAMS", programs)
    h, weight = integers(rows, items)
    bias = torch.randint(-3, 4, (items,)).float()
    bias[::5] = float("-inf")
    assert_same(h, weight, k, "triton")
    assert_same(h, weight, k, "triton", bias=bias, **seen_lists(rows, items, 2 * items))


@pytest.mark.parametrize("backend", FAST)
def test_lists_that_ascend_are_not_sorted_again(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    h, weight = integers(5, 40)
    seen = seen_lists(5, 40, 20)
    bounds = seen["seen_offsets"].tolist()
    seen["seen_items"] = torch.cat([seen["seen_items"][a:b].sort().values for a, b in pairwise(bounds)])
    expected = assert_same(h, weight, 30, backend, **seen)
    if backend == "triton":
        from fastseq.kernels import topk as kernel

        monkeypatch.delattr(kernel, "_sorted_lists")
    with set_backend(backend):
        given = topk(**moved({"h": h, "weight": weight, "k": 30, **seen, "seen_sorted": True}, backend))
    assert all(torch.equal(x.cpu(), y) for x, y in zip(given, expected, strict=True))


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=needs_triton)])
def test_a_list_that_does_not_ascend_although_promised(backend: str) -> None:
    """Descending from one list to the next, past empty ones too, is no fault."""
    h, weight = integers(4, 9)
    seen = {"seen_offsets": torch.tensor([0, 0, 2, 2, 5]), "seen_items": torch.tensor([3, 8, 1, 2, 7])}
    with set_backend(backend), check_data(True):
        topk(**moved({"h": h, "weight": weight, "k": 3, **seen, "seen_sorted": True}, backend))
        seen["seen_items"][4] = 0
        with pytest.raises(ValueError, match=r"seen_items\[4\] is 0, after 2: expected each list to ascend"):
            topk(**moved({"h": h, "weight": weight, "k": 3, **seen, "seen_sorted": True}, backend))


@needs_triton
def test_triton_sizes_and_dtypes(poisoned_empty: None) -> None:
    h, weight = integers(3, 130)
    assert_same(h, weight, 70, "triton", **seen_lists(3, 130, 80))
    for dtype in (torch.bfloat16, torch.float16):
        h, weight = integers(5, 70, dtype)
        scores, _ = assert_same(h, weight, 10, "triton", bias=torch.randint(-3, 4, (70,)).to(dtype))
        assert scores.dtype == dtype


@needs_triton
def test_triton_of_what_the_cpu_refuses(small_lists: None) -> None:
    """NaN is never an answer; seen ids that are no items do nothing."""
    bias = torch.tensor([float("nan"), float("-inf"), float("inf"), 0.0])
    seen = dict(seen_offsets=torch.tensor([0, 3]), seen_items=torch.tensor([-1, 4, 2**40]))
    arguments = {"h": torch.ones(1, 1), "weight": torch.ones(4, 1), "k": 4, "bias": bias, **seen}
    with set_backend("triton"), check_data(False):
        scores, ids = topk(**moved(arguments, "triton"))
    assert ids.tolist() == [[2, 3, -1, -1]]
    assert scores.tolist() == [[float("inf"), 1.0, float("-inf"), float("-inf")]]


def catalogue(kind: str, items: int, width: int) -> tuple[Tensor, Tensor]:
    """Users and items on which codes are hard to use, or do not tell items apart."""
    h, weight = torch.randn(FEW_USERS, width), torch.randn(items, width)
    if kind == "near ties":  # within a rounding of the last bit, far within that of a code
        weight = weight[:1] * (1 + 2e-7 * torch.randint(-3, 4, (items, 1)))
    elif kind == "against the codes":  # rests of half a step, of the sign of the users, against rests of the other
        steps = torch.randint(-126, 127, (items, width)) + 0.499 * torch.randint(-1, 2, (items, 1)) * h[0].sign()
        weight = steps.index_fill(1, torch.tensor(0), 127.0)
        h = h.sign() * (1 + torch.rand(FEW_USERS, 1))
    elif kind == "magnitudes":  # of float32, within a row too; users that codes do not serve among them
        weight *= 10.0 ** torch.randint(-45, 38, (items, 1))
        weight[::3] *= 10.0 ** torch.randint(-6, 1, (len(weight[::3]), width))
        weight.clamp_(-3e38, 3e38)
        h *= 10.0 ** torch.randint(-12, 1, (FEW_USERS, 1))
    elif kind == "zeros":
        weight[torch.rand(items) < 0.99] = 0.0
        h[1] = 0.0
    elif kind == "equal":
        weight = weight[:1].expand(items, width).contiguous()
    return h, weight


@pytest.mark.parametrize("kind", ["normal", "near ties", "against the codes", "magnitudes", "zeros", "equal"])
@pytest.mark.parametrize(("items", "width"), [(1, 1), (700, 50), (3001, 64), (500, 257)])
@pytest.mark.parametrize("users", [1, FEW_USERS, FEW_USERS + 1])
def test_codes_change_no_bit(kind: str, items: int, width: int, users: int) -> None:
    torch.manual_seed(items + width)
    h, weight = catalogue(kind, items, width)
    h = h.repeat(2, 1)[:users]
    codes = item_codes(weight)
    rows = [slice(row, row + 1) for row in range(len(h))] if kind == "magnitudes" else [slice(0, len(h))]
    for k in (1, 10, items + 3):
        for bias in (None, torch.randn(items).masked_fill_(torch.rand(items) < 0.1, float("-inf"))):
            for part in rows:
                users_of_part = h[part]
                seen = seen_lists(len(users_of_part), items, items // 2)
                expected = topk(users_of_part, weight, k, bias=bias, **seen)
                given = topk(users_of_part, weight, k, bias=bias, codes=codes, **seen)
                assert torch.equal(given[1], expected[1])
                assert torch.equal(given[0].view(torch.int32), expected[0].view(torch.int32))


def test_codes_spare_most_items() -> None:
    """Else they would pass every other test by reading all: items that are not read may hold anything."""
    torch.manual_seed(0)
    h, weight = torch.randn(3, 64), torch.randn(20_000, 64)
    expected, codes = topk(h, weight, 5), item_codes(weight)
    unlikely = (h @ weight.T).amax(0) < 12
    assert unlikely.sum() > 15_000
    weight[unlikely] = float("nan")
    threads = torch.get_num_threads()
    weight[:200] = torch.where(unlikely[:200, None], 0.0, weight[:200])  # the bars are low at first
    weight[-1] = weight[-1].nan_to_num()
    try:
        torch.set_num_threads(1)
        given = topk(h, weight, 5, codes=codes)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(given[1], expected[1])


def test_codes_hide_no_nan_and_no_infinity() -> None:
    h, weight = torch.randn(2, 40), torch.randn(300, 40)
    weight[7, 3] = float("inf") * h[0, 3].sign()
    h[1, 3] = h[0, 3]
    expected = topk(h, weight, 2)
    assert expected[1][:, 0].tolist() == [7, 7]
    given = topk(h, weight, 2, codes=item_codes(weight))
    assert all(torch.equal(x, y) for x, y in zip(given, expected, strict=True))
    weight[290, 0] = float("nan")
    with pytest.raises(ValueError, match="row 0 and item 290 is NaN"):
        topk(h, weight, 2, codes=item_codes(weight))
    h[0, 0] = float("nan")
    with pytest.raises(ValueError, match="row 0 and item 0 is NaN"):
        topk(h, weight, 2, codes=item_codes(weight))


def test_codes_hide_no_nan_behind_an_infinity() -> None:
    """Nothing is above a bar that is infinite, and NaN is refused all the same."""
    h, weight, bias = torch.ones(1, 32), torch.randn(50, 32), torch.zeros(50)
    weight[30, 3] = float("nan")
    bias[2] = float("inf")
    for forced, shift in ((weight.index_fill(0, torch.tensor(0), 3e38), None), (weight, bias)):
        with pytest.raises(ValueError, match="row 0 and item 30 is NaN"):
            topk(h, forced, 1, bias=shift, codes=item_codes(forced))


def test_codes_hide_no_partial_sum_that_overflows() -> None:
    """Item 9, of sum 0, first sums to infinity; without it item 0 is the best."""
    width = 8192
    h, weight = torch.full((1, width), 2.0**60), torch.zeros(40, width)
    weight[0] = 2.0**53
    weight[9] = torch.tensor([2.0**60, -(2.0**60)]).repeat_interleave(width // 2)
    scores, ids = topk(h, weight, 1, codes=item_codes(weight))
    assert (scores.item(), ids.item()) == (float("inf"), 9)


def test_codes_of_something_else_are_named() -> None:
    h, weight = torch.randn(2, 40), torch.randn(300, 40)
    codes, scales = item_codes(weight)
    assert codes.shape == (300, 64) and codes.dtype == torch.int8
    assert ((weight - scales[:, None] * codes[:, :40]).abs() <= 0.5001 * scales[:, None]).all()
    with pytest.raises(ValueError, match="expected what item_codes gives"):
        topk(h, weight[1:], 2, codes=(codes, scales))
    with pytest.raises(ValueError, match="expected what item_codes gives"):
        topk(h.double(), weight.double(), 2, codes=(codes, scales))
    with pytest.raises(ValueError, match="float32"):
        item_codes(weight.bfloat16())
