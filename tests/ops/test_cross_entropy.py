"""linear_cross_entropy: every implementation against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import check_data, linear_cross_entropy, set_backend
from tests import run_python

from .backends import DEVICE, Function, check_cpu, check_threads, check_triton, needs_triton, run
from .compare import assert_as_accurate

PER_ROW = {"linear_cross_entropy", "linear_cross_entropy_backward"}
SUMMED = {"summed_linear_cross_entropy"}
CHUNK, FEWEST_ROWS, MOST_ROWS = 256, 48, 768  # of csrc/cross_entropy.cpp


def op(targets: Tensor, **options: Any) -> Function:
    def function(h: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear_cross_entropy(h, weight, targets.to(h.device), bias=bias, **options)

    return function


def inputs(rows: int, classes: int, width: int, with_bias: bool) -> tuple[dict[str, Any], Tensor]:
    targets = torch.randint(0, classes, (rows,))
    targets[::5] = -100
    values = {
        "h": torch.randn(rows, width),
        "weight": torch.randn(classes, width),
        "bias": torch.randn(classes) if with_bias else None,
    }
    return values, targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(("with_bias", "softcap"), [(False, None), (True, None), (True, 5.0)])
@pytest.mark.parametrize(
    ("rows", "classes", "width"), [(1, 1, 1), (9, 17, 3), (37, 65, 24), (13, 700, 60), (775, 257, 5), (0, 7, 4)]
)
def test_accuracy(
    rows: int, classes: int, width: int, with_bias: bool, softcap: float | None, reduction: str, dtype: torch.dtype,
    poisoned_empty: None,
) -> None:  # fmt: skip
    """700 classes are three chunks, and 775 rows two blocks."""
    values, targets = inputs(rows, classes, width, with_bias)
    targets[:1] = classes - 1
    upstream = torch.randn(rows) if reduction == "none" else torch.randn(())
    check_cpu(
        op(targets, reduction=reduction, softcap=softcap),
        values,
        upstream,
        dtype,
        PER_ROW if reduction == "none" else SUMMED,
    )


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_agrees_with_pytorch(backend: str, softcap: float | None) -> None:
    values, targets = inputs(33, 40, 8, True)

    def pytorch(h: Tensor, weight: Tensor, bias: Tensor, reduction: str) -> Tensor:
        logits = F.linear(h, weight, bias)
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        return F.cross_entropy(logits, targets, reduction=reduction)

    for reduction in ("none", "mean", "sum"):
        upstream = torch.rand(33) if reduction == "none" else torch.tensor(1.7)
        results = run(op(targets, reduction=reduction, softcap=softcap), values, upstream, backend, set())
        leaves = {name: x.clone().requires_grad_() for name, x in values.items()}
        expected = pytorch(**leaves, reduction=reduction)
        expected.backward(upstream)
        torch.testing.assert_close(results["output"], expected.detach(), rtol=1e-5, atol=1e-5)
        for name, x in leaves.items():
            torch.testing.assert_close(results[f"gradient of {name}"], x.grad, rtol=1e-4, atol=1e-5)


def test_large_logits() -> None:
    """Logits of ±1e4: the maximum is taken out before exponentials, across chunks too."""
    h, weight = torch.eye(6) * 100, torch.randn(2 * CHUNK + 1, 6) * 100
    targets = torch.arange(6)
    check_cpu(op(targets, reduction="none"), {"h": h, "weight": weight}, torch.randn(6), torch.float32, PER_ROW)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_ignored_rows(backend: str) -> None:
    values, targets = inputs(10, 7, 4, True)
    targets[:] = 3
    targets[[0, 9]] = -1
    results = run(op(targets, ignore_index=-1, reduction="none"), values, torch.rand(10), backend, PER_ROW)
    assert (results["output"] == 0).tolist() == [True] + [False] * 8 + [True]
    assert not results["gradient of h"][[0, 9]].any()
    targets[:] = -1
    results = run(op(targets, ignore_index=-1), values, torch.ones(()), backend, set())
    assert all(torch.equal(x, torch.zeros_like(x)) for x in results.values()), "mean of nothing is 0"


def test_ignored_index_within_range() -> None:
    """ignore_index may be a class (the padding item): it counts in the partition, not as a target."""
    values, targets = inputs(10, 7, 4, False)
    targets[:] = torch.arange(10) % 7
    loss = op(targets, ignore_index=2)(**values)
    expected = F.cross_entropy(F.linear(values["h"], values["weight"]), targets, ignore_index=2)
    torch.testing.assert_close(loss, expected)


def test_memory_is_bounded() -> None:
    """A process whose table and gradients take 20 MB trains on 8,192 rows of 100,000 classes."""
    program = """
import torch
from fastseq._process import peak_rss_mb, reset_peak_rss
from fastseq.ops import linear_cross_entropy
h, weight = torch.randn(8192, 16, requires_grad=True), torch.randn(100_000, 16, requires_grad=True)
targets = torch.randint(0, 100_000, (8192,))
linear_cross_entropy(h[:8], weight, targets[:8]).backward()
before = peak_rss_mb()
linear_cross_entropy(h, weight, targets).backward()
print(peak_rss_mb() - before)
"""
    assert float(run_python("-c", program).stdout) < 200, "[N, V] logits are 3,277 MB"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_nan_is_not_hidden_by_a_later_chunk(backend: str) -> None:
    """A diverged item makes every loss NaN, whichever chunk it is in."""
    for item in (0, CHUNK, 2 * CHUNK):
        weight = torch.randn(2 * CHUNK + 1, 3)
        weight[item] = float("nan")
        with set_backend(backend):
            losses = linear_cross_entropy(torch.randn(6, 3), weight, torch.arange(6) + 10, reduction="none")
        assert losses.isnan().all(), item


def test_items_barred_by_their_bias() -> None:
    """A bias of -inf takes items out, a whole chunk of them too, first or last."""
    h, weight, targets = torch.randn(6, 3), torch.randn(3 * CHUNK, 3), torch.arange(6) + CHUNK
    for barred in (slice(0, CHUNK), slice(2 * CHUNK, 3 * CHUNK)):
        bias = torch.randn(3 * CHUNK)
        bias[barred] = float("-inf")
        leaves = [x.clone().requires_grad_() for x in (h, weight, bias)]
        losses = op(targets, reduction="none")(*leaves)
        expected = F.cross_entropy(F.linear(*leaves), targets, reduction="none")
        torch.testing.assert_close(losses, expected)
        for x, y in zip(
            torch.autograd.grad(losses.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
        ):
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_autocast(reduction: str) -> None:
    """Products in bfloat16, statistics in float32: as accurate as PyTorch on operands rounded to bfloat16."""
    values, targets = inputs(MOST_ROWS + 7, 2 * CHUNK + 3, 21, True)
    upstream = torch.randn(len(targets)) if reduction == "none" else torch.randn(())
    ops = PER_ROW if reduction == "none" else SUMMED

    def bf16(**leaves: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return op(targets, reduction=reduction)(**leaves)

    exact = run(
        op(targets, reduction=reduction), {k: v.double() for k, v in values.items()}, upstream, "reference", ops
    )
    rounded = run(bf16, values, upstream, "reference", ops)
    for name, x in run(bf16, values, upstream, "cpu", ops).items():
        assert x.dtype == torch.float32
        assert_as_accurate(x, rounded[name], exact[name], 3.0, name)  # gradients of logits are rounded here too


def test_threads() -> None:
    values, targets = inputs(MOST_ROWS + 7, 2 * CHUNK + 3, 21, True)
    for reduction in ("none", "sum"):
        upstream = torch.randn(len(targets)) if reduction == "none" else torch.randn(())
        check_threads(op(targets, reduction=reduction), values, upstream)


@pytest.fixture(params=["none", "sum", "kept"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A loss per row; their sum with logits made twice, and kept. Any number of rows may be kept, or none."""
    from fastseq.kernels import cross_entropy

    form: str = request.param
    fewest = 1 if form == "kept" else 1 << 30
    monkeypatch.setattr(cross_entropy, "KEPT_ROWS", dict.fromkeys(cross_entropy.KEPT_ROWS, fewest))
    return form


def ops_of(form: str) -> set[str]:
    return PER_ROW if form == "none" else SUMMED


def shaped(form: str, targets: Tensor, softcap: float | None = None) -> tuple[Function, Tensor]:
    """The op in that form and a gradient of its output."""
    upstream = torch.randn(targets.shape if form == "none" else ())
    return op(targets, reduction="none" if form == "none" else "sum", softcap=softcap), upstream


@needs_triton
@pytest.mark.parametrize(("with_bias", "softcap", "programs"), [(False, None, 1), (True, None, 512), (True, 5.0, 4)])
def test_triton(
    form: str, with_bias: bool, softcap: float | None, programs: int, poisoned_empty: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Walks whole, in four parts and in as many as there are tiles; 200 columns are seven steps. One chunk, and chunks
    of 64 items or of 32 rows."""
    from fastseq.kernels import cross_entropy

    monkeypatch.setattr(cross_entropy, "PROGRAMS", programs)
    if programs > 1:
        monkeypatch.setattr(cross_entropy, "CHUNK", 32 * 512 * 4 if form == "kept" else 1)
    for rows, classes, width in ((1, 1, 1), (9, 17, 3), (70, 65, 24), (13, 300, 60), (5, 70, 200)):
        values, targets = inputs(rows, classes, width, with_bias)
        values["h"] /= width**0.5
        targets[0] = classes - 1
        function, upstream = shaped(form, targets, softcap)
        check_triton(function, values, upstream, ops_of(form))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_triton_half(dtype: torch.dtype, form: str) -> None:
    """The mean over 3,000,000 rows: float16 holds neither its probabilities nor their products."""
    values, targets = inputs(37, 65, 24, True)
    upstream = torch.rand(37) / 3e6
    if dtype == torch.bfloat16 or form != "none":
        check_triton(shaped(form, targets)[0], values, upstream if form == "none" else upstream[0], ops_of(form), dtype)
        return
    scaled = {name: x.half() for name, x in values.items()}

    def slopes(x: dict[str, Tensor], backend: str) -> Tensor:
        arguments = [v.to(DEVICE) for v in (x["h"], x["weight"], targets, x["bias"])]
        with set_backend(backend):
            lse = torch.ops.fastseq.linear_cross_entropy(*arguments, -100, None, False)[1]
            grad = upstream.to(lse.dtype).to(DEVICE)
            settings = (arguments[2], lse, arguments[3], -100, None, False)
            return torch.ops.fastseq.linear_cross_entropy_backward(grad, arguments[0], arguments[1], *settings)[0]

    half, exact = slopes(scaled, "triton"), slopes({name: x.double() for name, x in scaled.items()}, "reference")
    step = 2.0**-24  # of float16 near 0
    assert half.any() and (half.double() - exact).abs().max() <= 0.51 * step + 1e-3 * exact.abs().max()


@needs_triton
def test_triton_rows_too_long_for_a_tile(poisoned_empty: None) -> None:
    """More items than one pass of a row's program takes, and more than LONG; under "mean"."""
    from fastseq.kernels.cross_entropy import LONG

    for classes in (600, LONG + 5):
        values, targets = inputs(7, classes, 6, True)
        check_triton(op(targets), values, torch.tensor(1.7), SUMMED)


@needs_triton
def test_triton_grids_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of one row has room for more tiles of items than CUDA takes; they are covered all the same."""
    from fastseq.kernels import cross_entropy

    grids: list[tuple[int, int]] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, int]) -> Any:
            grids.append(grid)
            return lambda *_, **__: None

    monkeypatch.setattr(cross_entropy, "_slopes", Recorder())
    monkeypatch.setattr(cross_entropy._Gradients, "add", lambda *_: None)
    items = 9_000_000
    h, weight = torch.empty(1, 8, device="meta"), torch.empty(items, 8, device="meta")
    targets, lse = torch.empty(1, dtype=torch.int64, device="meta"), torch.empty(1, device="meta")
    cross_entropy.linear_cross_entropy_backward(None, h, weight, targets, lse, None, -100, None, False)
    assert max(tiles for _, tiles in grids) < 1 << 16
    tile = cross_entropy.TILES["ieee"].items
    assert sum(tiles for _, tiles in grids) == -(-items // tile)


@needs_triton
def test_triton_extremes(form: str) -> None:
    """Large logits, barred items, NaN, all rows ignored, no rows, a target that is no item."""
    h, weight = torch.eye(6) * 100, torch.randn(131, 6) * 100
    targets = torch.arange(6)
    values = {"h": h, "weight": weight}
    function, upstream = shaped(form, targets)
    check_triton(function, values, upstream, ops_of(form))
    bias = torch.randn(300)
    bias[:130] = float("-inf")
    values = {"h": torch.randn(6, 3), "weight": torch.randn(300, 3), "bias": bias}
    function, upstream = shaped(form, targets + 200)
    check_triton(function, values, upstream, ops_of(form))
    values["weight"][200] = float("nan")
    assert run(shaped(form, targets)[0], values, upstream, "triton", ops_of(form))["output"].isnan().all()
    values["weight"][200] = 0.0
    ids = torch.tensor([3, 300, 3, -1, -100, 3])
    with check_data(False):
        results = run(shaped(form, ids)[0], values, upstream, "triton", ops_of(form))
    wrong = [False, True, False, True, False, False]
    assert results["gradient of h"].isnan().all(1).tolist() == wrong and results["gradient of weight"].isnan().all()
    assert not results["gradient of h"][4].any(), "an ignored row has no gradient"
    assert results["output"].isnan().tolist() == (wrong if form == "none" else True)
    for ids, h in ((torch.full((6,), -100), values["h"]), (targets[:0], values["h"][:0])):
        results = run(op(ids), {**values, "h": h}, torch.ones(()), "triton", set())
        assert all(torch.equal(x, torch.zeros_like(x)) for x in results.values()), "mean of nothing is 0"


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU's autocast; with a GPU nothing is interpreted")
def test_triton_bfloat16_products() -> None:
    values, targets = inputs(19, 40, 21, True)

    def bf16(**leaves: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return op(targets, reduction="none")(**leaves)

    plain = run(bf16, values, torch.ones(19), "reference", PER_ROW)
    for name, x in run(bf16, values, torch.ones(19), "triton", PER_ROW).items():
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, plain[name], rtol=0.02, atol=0.02)
