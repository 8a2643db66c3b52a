"""linear_cross_entropy: every implementation against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastseq.ops import linear_cross_entropy, set_backend
from fastseq.ops.cpu import cross_entropy as cpu

from .backends import Function, check_compiled, check_cpu, run

OPS = {"linear_cross_entropy", "linear_cross_entropy_backward"}


def op(targets: Tensor, **options: Any) -> Function:
    def function(h: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear_cross_entropy(h, weight, targets, bias=bias, **options)

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


@pytest.fixture(params=["one tile", "many tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many tiles":
        monkeypatch.setattr(cpu, "TILE_ROWS", 4)
        monkeypatch.setattr(cpu, "TILE_COLUMNS", 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(("with_bias", "softcap"), [(False, None), (True, None), (True, 5.0)])
@pytest.mark.parametrize(("rows", "classes", "width"), [(1, 1, 1), (9, 17, 3), (37, 65, 24)])
def test_accuracy(
    rows: int, classes: int, width: int, with_bias: bool, softcap: float | None, reduction: str, dtype: torch.dtype,
    tiles: None, poisoned_empty: None,
) -> None:  # fmt: skip
    values, targets = inputs(rows, classes, width, with_bias)
    targets[0] = classes - 1
    upstream = torch.randn(rows) if reduction == "none" else torch.randn(())
    check_cpu(op(targets, reduction=reduction, softcap=softcap), values, upstream, dtype, OPS)


def test_agrees_with_pytorch() -> None:
    values, targets = inputs(33, 40, 8, True)
    logits = F.linear(*values.values())
    for reduction in ("none", "mean", "sum"):
        expected = F.cross_entropy(logits, targets, reduction=reduction)
        torch.testing.assert_close(op(targets, reduction=reduction)(**values), expected, rtol=1e-5, atol=1e-5)


def test_large_logits(tiles: None) -> None:
    """Logits of ±1e4: the maximum is taken out before exponentials, across tiles too."""
    h, weight = torch.eye(6) * 100, torch.randn(20, 6) * 100
    targets = torch.arange(6)
    check_cpu(op(targets, reduction="none"), {"h": h, "weight": weight}, torch.randn(6), torch.float32, OPS)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_ignored_rows(backend: str) -> None:
    values, targets = inputs(10, 7, 4, True)
    targets[:] = 3
    targets[[0, 9]] = -1
    results = run(op(targets, ignore_index=-1, reduction="none"), values, torch.rand(10), backend, OPS)
    assert (results["output"] == 0).tolist() == [True] + [False] * 8 + [True]
    assert not results["gradient of h"][[0, 9]].any()
    targets[:] = -1
    results = run(op(targets, ignore_index=-1), values, torch.ones(()), backend, OPS)
    assert all(torch.equal(x, torch.zeros_like(x)) for x in results.values()), "mean of nothing is 0"


def test_ignored_index_within_range() -> None:
    """ignore_index may be a class (the padding item): it counts in the partition, not as a target."""
    values, targets = inputs(10, 7, 4, False)
    targets[:] = torch.arange(10) % 7
    loss = op(targets, ignore_index=2)(**values)
    expected = F.cross_entropy(F.linear(values["h"], values["weight"]), targets, ignore_index=2)
    torch.testing.assert_close(loss, expected)


def test_no_rows() -> None:
    values, targets = inputs(0, 7, 4, True)
    results = run(op(targets), values, torch.ones(()), "cpu", OPS)
    assert results["output"] == 0
    assert not results["gradient of weight"].any() and not results["gradient of bias"].any()


def test_memory_is_bounded() -> None:
    """No tensor that any PyTorch call of the CPU path makes is larger than a tile, the table or the hidden states."""
    sizes: list[int] = []

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            result = function(*arguments, **(options or {}))
            if isinstance(result, Tensor):
                sizes.append(result.numel())
            return result

    h, weight, targets = torch.randn(700, 4), torch.randn(9001, 4), torch.randint(0, 9001, (700,))
    with Recorded():
        losses, lse = cpu.linear_cross_entropy(h, weight, targets, None, -100, 3.0)
        cpu.linear_cross_entropy_backward(torch.ones_like(losses), h, weight, targets, lse, None, -100, 3.0)
    assert cpu.TILE_ROWS * cpu.TILE_COLUMNS // 2 < max(sizes) <= cpu.TILE_ROWS * cpu.TILE_COLUMNS < 700 * 9001


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_nan_is_not_hidden_by_a_later_tile(backend: str, tiles: None) -> None:
    """A diverged item makes every loss NaN, whichever tile it is in."""
    for item in (0, 9, 19):
        weight = torch.randn(20, 3)
        weight[item] = float("nan")
        with set_backend(backend):
            losses = linear_cross_entropy(torch.randn(6, 3), weight, torch.arange(6) + 10, reduction="none")
        assert losses.isnan().all(), item


def test_items_barred_by_their_bias(tiles: None) -> None:
    """A bias of -inf takes items out, a whole tile of them too, first or last."""
    h, weight, targets = torch.randn(6, 3), torch.randn(40, 3), torch.arange(6) + 16
    for barred in (slice(0, 16), slice(24, 40)):
        bias = torch.randn(40)
        bias[barred] = float("-inf")
        leaves = [x.clone().requires_grad_() for x in (h, weight, bias)]
        losses = op(targets, reduction="none")(*leaves)
        expected = F.cross_entropy(F.linear(*leaves), targets, reduction="none")
        torch.testing.assert_close(losses, expected)
        for x, y in zip(
            torch.autograd.grad(losses.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
        ):
            torch.testing.assert_close(x, y)


def test_opcheck_and_compile() -> None:
    values, targets = inputs(11, 13, 6, True)
    h, weight, bias = (v.clone().requires_grad_() for v in values.values() if v is not None)
    torch.library.opcheck(torch.ops.fastseq.linear_cross_entropy.default, (h, weight, targets, bias, -100, 4.0))
    h, weight, bias = h.detach(), weight.detach(), bias.detach()
    torch.library.opcheck(
        torch.ops.fastseq.linear_cross_entropy_backward.default,
        (torch.randn(11), h, weight, targets, torch.randn(11), bias, -100, None),
    )
    for reduction in ("none", "mean"):
        upstream = torch.randn(11) if reduction == "none" else torch.randn(())
        check_compiled(op(targets, reduction=reduction), values, upstream)


def test_errors() -> None:
    values, targets = inputs(4, 7, 3, False)
    h, weight = values["h"], values["weight"]
    targets[:] = torch.tensor([0, -100, 7, 1])
    with pytest.raises(ValueError, match=r"targets\[2\] is 7, expected 0 <= target < 7"):
        linear_cross_entropy(h, weight, targets)
    targets[2] = -1
    with pytest.raises(ValueError, match=r"targets\[2\] is -1"):
        linear_cross_entropy(h, weight, targets)
    targets[2] = 0
    with pytest.raises(ValueError, match="reduction is 'median'"):
        linear_cross_entropy(h, weight, targets, reduction="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"softcap is 0\.0"):
        linear_cross_entropy(h, weight, targets, softcap=0.0)
    with pytest.raises(ValueError, match=r"targets is torch.int32"):
        linear_cross_entropy(h, weight, targets.int())
    with pytest.raises(ValueError, match=r"bias is \[3\], expected \[7\]"):
        linear_cross_entropy(h, weight, targets, bias=torch.zeros(3))
