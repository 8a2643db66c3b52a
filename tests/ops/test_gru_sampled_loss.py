"""ops/gru_sampled_loss.py: the fused node against nn.GRU, nn.Linear and the plain loss, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastseq import ops
from fastseq.ops.sampled_loss import IGNORED, LOSSES
from tests.ops.backends import check_same_on_threads, moved, needs_triton
from tests.ops.compare import assert_accurate
from tests.ops.test_gru import offsets_of, pytorch_gru
from tests.ops.test_sampled_loss import plain_loss

FLOATS = ("x_gates", "weight_hh", "bias_hh", "dense_weight", "dense_bias", "item_weight")
# Lengths of sequences, hidden size, width, negatives.
SMALL = ([5, 0, 9, 1, 3], 20, 12, 3)
SHAPES = [SMALL, ([], 4, 3, 2), ([1], 1, 1, 1), ([7, 12], 16, 20, 40)]
# More rows than a span of C++ and shared negatives than a strip; the others' gradients would lose digits to 150.
LARGE = {True: ([11] * 55, 40, 65, 150), False: ([11] * 55, 40, 65, 5)}
OUTPUTS = ("loss", "h", "gates", "y", "d_scores", "d_h", "d_weight", "d_bias", "d_negatives")


def inputs(
    shape: tuple[list[int], int, int, int], *, rows: bool, bias: bool, shared: bool, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Few items, so that negatives hit their target; a third of the targets is ignored."""
    lengths, hidden, width, count = shape
    generator, events, items = torch.Generator().manual_seed(3), sum(lengths), 15
    shapes = [(events, 3 * hidden), (3 * hidden, hidden), (3 * hidden,), (width, hidden), (width,), (items + 1, width)]
    floats = {
        name: (torch.randn(shape, generator=generator, dtype=torch.float64) / max(1, shape[-1]) ** 0.25).to(dtype)
        for name, shape in zip(FLOATS, shapes, strict=True)
    }
    indices = torch.randperm(events, generator=generator)[: (events + 1) // 2] if rows else None
    if indices is not None and len(indices) > 1:
        indices[0] = indices[1]  # one that counts twice
    counted = events if indices is None else len(indices)
    targets = torch.randint(0, items + 1, (counted,), generator=generator)
    targets[2::3] = IGNORED
    negatives = torch.randint(0, items + 1, (count,) if shared else (counted, count), generator=generator)
    return {
        **floats,
        "bias_hh": floats["bias_hh"] if bias else None,
        "offsets": offsets_of(lengths),
        "rows": indices,
        "targets": targets,
        "negatives": negatives,
        "log_q": torch.randn(negatives.shape, generator=generator, dtype=torch.float64).to(dtype),
        "max_len": max([1, *lengths]),
        "padding_idx": items,
        "beta": 0.3,
    }


def arguments(case: dict[str, Any], loss: str) -> dict[str, Any]:
    return {**case, "loss": loss, "log_q": case["log_q"] if loss == "sampled_softmax" else None}


def fused(case: dict[str, Any], loss: str) -> list[Tensor]:
    """A quarter of the sum of the losses and the gradients of 3 times that."""
    leaves = {name: case[name].clone().requires_grad_() for name in FLOATS if case[name] is not None}
    total = ops.gru_sampled_loss(**{**arguments(case, loss), **leaves}, reduction="sum", divisor=4)
    return [total.detach(), *torch.autograd.grad(3 * total, list(leaves.values()))]


def plain(case: dict[str, Any], loss: str, dtype: torch.dtype) -> list[Tensor]:
    """nn.GRU → linear → plain losses, chained by hand: each stage's gradient is the next one's upstream."""
    lengths = case["offsets"].diff().tolist()
    zeros = torch.zeros(sum(lengths), case["weight_hh"].shape[1], dtype=dtype)
    recurrence = [case["x_gates"], case["weight_hh"], case["bias_hh"], zeros]
    h = (pytorch_gru(lengths, recurrence, dtype)[0] if sum(lengths) else zeros).requires_grad_()
    weight, bias = (case[name].to(dtype).clone().requires_grad_() for name in ("dense_weight", "dense_bias"))
    keep = (case["targets"] != IGNORED).nonzero()[:, 0]
    y = F.linear(h[keep if case["rows"] is None else case["rows"][keep]], weight, bias)
    kept = {name: case[name] if case[name].dim() == 1 else case[name][keep] for name in ("negatives", "log_q")}
    losses = {
        "h": y.detach(), "item_weight": case["item_weight"], "targets": case["targets"][keep], **kept,
        "grad": torch.full((len(keep),), 0.75, dtype=dtype),
    }  # fmt: skip
    rows, grad_y, grad_items = plain_loss(losses, loss, dtype, padding_idx=case["padding_idx"])
    grad_h, grad_weight, grad_bias = torch.autograd.grad(y, [h, weight, bias], grad_y)
    if sum(lengths):
        recurrent = pytorch_gru(lengths, [*recurrence[:3], grad_h], dtype)[1:]
    else:
        recurrent = [torch.zeros_like(x, dtype=dtype) for x in recurrence[:3] if x is not None]
    return [rows.sum() / 4, *recurrent, grad_weight, grad_bias, grad_items]


@pytest.mark.parametrize(
    ("backend", "dtype", "shapes"),
    [
        ("cpu", torch.float32, "both"),
        ("cpu", torch.float64, "both"),
        ("reference", torch.float32, "few"),
        ("reference", torch.float64, "few"),
        pytest.param("triton", torch.float32, "few", marks=needs_triton),
    ],
)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shared", [False, True])
def test_equals_its_parts(
    backend: str, dtype: torch.dtype, shapes: str, shared: bool, loss: str, poisoned_empty: None
) -> None:
    with_rows = loss in ("bpr", "sampled_softmax")
    for shape in [*SHAPES, LARGE[shared]] if shapes == "both" else SHAPES:
        case = inputs(shape, rows=with_rows, bias=with_rows != shared, shared=shared, dtype=dtype)
        with ops.set_backend(backend), ops.record_served() as calls:
            results, again = (fused(moved(case, backend), loss) for _ in range(2))
        assert calls == [("gru_sampled_loss", backend), ("gru_sampled_loss_backward", backend)] * 2
        assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
        names = [f"{name} of {shape}" for name in ("loss", *(n for n in FLOATS if case[n] is not None))]
        same, exact = plain(case, loss, dtype), plain(case, loss, torch.float64)
        assert_accurate(names, [x.cpu() for x in results], same, exact, tolerance=1e-13)


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("hidden", [20, 0])
def test_outputs_have_one_meaning(backend: str, shared: bool, hidden: int, poisoned_empty: None) -> None:
    """So that one implementation may have the forward pass and another the backward pass."""
    case = inputs((SMALL[0], hidden, *SMALL[2:]), rows=True, bias=True, shared=shared)
    if not shared:
        case["negatives"][case["targets"] == IGNORED] = -1  # not read
    names = ["x_gates", "weight_hh", "offsets", "bias_hh", "max_len", "dense_weight", "dense_bias", "rows",
             "item_weight", "targets", "negatives"]  # fmt: skip
    results = []
    for name in ("reference", backend):
        values = moved(case, name)
        with ops.set_backend(name):
            outputs = torch.ops.fastseq.gru_sampled_loss(*(values[n] for n in names), "bpr", None, 1.0, 15, 0.5)
            results.append([x.cpu() for x in outputs])
    for name, expected, result in zip(OUTPUTS, *results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("shared", [False, True])
def test_same_bits_for_any_number_of_threads(shared: bool) -> None:
    case = inputs(LARGE[shared], rows=False, bias=True, shared=shared)
    check_same_on_threads(lambda: fused(case, "sampled_softmax"))


@pytest.mark.parametrize("rows", [False, True])
def test_reductions(rows: bool) -> None:
    """The losses one by one, by the three ops, add up to the sum and the mean of the fused one."""
    case = arguments(inputs(SMALL, rows=rows, bias=True, shared=False), "gbce")
    results = []
    for reduction in ("none", "sum", "mean"):
        leaves = {name: case[name].clone().requires_grad_() for name in FLOATS}
        loss = ops.gru_sampled_loss(**{**case, **leaves}, reduction=reduction)
        total = {"none": loss.sum(), "sum": loss, "mean": loss * (case["targets"] != IGNORED).sum()}[reduction]
        results.append([total, *torch.autograd.grad(total, list(leaves.values()))])
    for parts in zip(*results, strict=True):
        for part in parts[1:]:
            torch.testing.assert_close(part, parts[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared", [False, True])
def test_half_types(backend: str, dtype: torch.dtype, shared: bool) -> None:
    """The upstream gradient, as that of a scaled loss, is too large for float16; the gradients are not."""
    case = inputs(SMALL, rows=True, bias=False, shared=shared, dtype=dtype)
    wide = {name: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in case.items()}
    results = []
    for values, name in ((case, backend), (wide, "reference")):
        values = moved(values, name)
        leaves = {n: values[n].clone().requires_grad_() for n in FLOATS if values[n] is not None}
        with ops.set_backend(name):
            loss = ops.gru_sampled_loss(**{**arguments(values, "bpr"), **leaves}, reduction="sum", divisor=16)
            results.append([loss.detach(), *torch.autograd.grad(loss, list(leaves.values()), loss.new_tensor(7e4))])
    assert [x.dtype for x in results[0]] == [torch.float32] + [dtype] * len(leaves)
    for result, exact in zip(*results, strict=True):
        error = (result.cpu().double() - exact.cpu().double()).norm() / exact.double().norm()
        assert error < 2 * torch.finfo(dtype).eps


@needs_triton
def test_rows_too_wide_for_triton_are_refused() -> None:
    case = moved(inputs(([1], 1, 32769, 1), rows=False, bias=False, shared=False), "triton")
    with ops.set_backend("triton"), pytest.raises(ValueError, match="at most 32768"):
        ops.gru_sampled_loss(**arguments(case, "bpr"))
