"""ops/gru_sampled_loss.py: the fused node against nn.GRU, nn.Linear and the plain loss, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastseq import ops
from tests.ops.backends import check_same_on_threads, moved, needs_triton
from tests.ops.compare import assert_accurate
from tests.ops.test_gru import offsets_of, pytorch_gru
from tests.ops.test_sampled_loss import plain_loss

LENGTHS = [5, 0, 33, 1, 12]
HIDDEN, WIDTH, ITEMS, COUNT = 20, 12, 15, 3
FLOATS = ("x_gates", "weight_hh", "bias_hh", "dense_weight", "dense_bias", "item_weight")


def inputs(*, rows: bool, bias: bool, shared: bool, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    events = sum(LENGTHS)
    shapes = [(events, 3 * HIDDEN), (3 * HIDDEN, HIDDEN), (3 * HIDDEN,), (WIDTH, HIDDEN), (WIDTH,), (ITEMS + 1, WIDTH)]
    floats = {
        name: (torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.25).to(dtype)
        for name, shape in zip(FLOATS, shapes, strict=True)
    }
    row_indices = torch.randperm(events, generator=generator)[: events // 2] if rows else None
    counted = events if row_indices is None else len(row_indices)
    shape = (COUNT,) if shared else (counted, COUNT)
    return {
        **floats,
        "bias_hh": floats["bias_hh"] if bias else None,
        "rows": row_indices,
        "targets": torch.randint(0, ITEMS + 1, (counted,), generator=generator),
        "negatives": torch.randint(0, ITEMS + 1, shape, generator=generator),
        "grad": torch.randn(counted, generator=generator, dtype=torch.float64).to(dtype),
    }


def fused(case: dict[str, Any], loss: str) -> list[Tensor]:
    leaves = {name: case[name].clone().requires_grad_() for name in FLOATS if case[name] is not None}
    offsets = offsets_of(LENGTHS).to(case["targets"].device)
    rows = ops.gru_sampled_loss(
        leaves["x_gates"], leaves["weight_hh"], offsets, leaves["dense_weight"], leaves["dense_bias"],
        case["rows"], leaves["item_weight"], case["targets"], case["negatives"], max_len=max(LENGTHS),
        bias_hh=leaves.get("bias_hh"), loss=loss, log_q=case.get("log_q"),
        reduction="none", padding_idx=ITEMS,
    )  # fmt: skip
    return [rows.detach(), *torch.autograd.grad(rows, list(leaves.values()), case["grad"])]


def plain(case: dict[str, Any], loss: str, dtype: torch.dtype) -> list[Tensor]:
    """nn.GRU → linear → plain losses, chained by hand: each stage's gradient is the next one's upstream."""
    events = sum(LENGTHS)
    zeros = torch.zeros(events, HIDDEN, dtype=dtype)
    arguments = [case["x_gates"], case["weight_hh"], case["bias_hh"], zeros]
    h = pytorch_gru(LENGTHS, arguments, dtype)[0].requires_grad_()
    weight, bias = (case[name].to(dtype).clone().requires_grad_() for name in ("dense_weight", "dense_bias"))
    y = F.linear(h if case["rows"] is None else h[case["rows"]], weight, bias)
    losses = {**case, "h": y.detach(), "log_q": torch.zeros(case["negatives"].shape)}
    rows, grad_y, grad_items = plain_loss(losses, loss, dtype, padding_idx=ITEMS)
    grad_h, grad_weight, grad_bias = torch.autograd.grad(y, [h, weight, bias], grad_y)
    recurrent = pytorch_gru(LENGTHS, [*arguments[:3], grad_h], dtype)[1:]
    return [rows, *recurrent, grad_weight, grad_bias, grad_items]


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        *((backend, dtype) for backend in ("cpu", "reference") for dtype in (torch.float32, torch.float64)),
        pytest.param("triton", torch.float32, marks=needs_triton),
    ],
)
@pytest.mark.parametrize(
    ("rows", "bias", "shared", "loss"),
    [(True, False, False, "bpr"), (False, True, True, "bce"), (True, True, False, "sampled_softmax")],
)
def test_equals_its_parts(
    backend: str, dtype: torch.dtype, rows: bool, bias: bool, shared: bool, loss: str, poisoned_empty: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if backend == "triton":
        monkeypatch.setattr("tests.ops.test_gru_sampled_loss.LENGTHS", [5, 0, 9, 1, 3])
    case = inputs(rows=rows, bias=bias, shared=shared, dtype=dtype)
    if rows:
        case["rows"][0] = case["rows"][1]  # one that counts twice
    log_q = torch.zeros(case["negatives"].shape, dtype=dtype) if loss == "sampled_softmax" else None
    with ops.set_backend(backend), ops.record_served() as calls:
        results, again = (fused(moved({**case, "log_q": log_q}, backend), loss) for _ in range(2))
    assert calls == [("gru_sampled_loss", backend), ("gru_sampled_loss_backward", backend)] * 2
    assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
    names = ["loss", *(f"grad {name}" for name in FLOATS if case[name] is not None)]
    same, exact = plain(case, loss, dtype), plain(case, loss, torch.float64)
    assert_accurate(names, [x.cpu() for x in results], same, exact, tolerance=1e-13)


@pytest.mark.parametrize("shared", [False, True])
def test_same_bits_for_any_number_of_threads(shared: bool) -> None:
    case = inputs(rows=True, bias=True, shared=shared)
    check_same_on_threads(lambda: fused(case, "bpr"))


@pytest.mark.parametrize("rows", [False, True])
def test_equals_the_three_ops(rows: bool) -> None:
    case = inputs(rows=rows, bias=True, shared=False)
    leaves = {name: case[name].clone().requires_grad_() for name in FLOATS}
    h = ops.gru(
        leaves["x_gates"], leaves["weight_hh"], offsets_of(LENGTHS), bias_hh=leaves["bias_hh"], max_len=max(LENGTHS)
    )
    y = F.linear(h if case["rows"] is None else h[case["rows"]], leaves["dense_weight"], leaves["dense_bias"])
    loss = ops.sampled_loss(
        y, leaves["item_weight"], case["targets"], case["negatives"], reduction="none", padding_idx=ITEMS
    )
    expected = [loss, *torch.autograd.grad(loss, list(leaves.values()), case["grad"])]
    for result, reference in zip(fused(case, "bpr"), expected, strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-6, atol=1e-6)


def test_bfloat16_and_reductions() -> None:
    case = inputs(rows=True, bias=False, shared=False, dtype=torch.bfloat16)
    arguments = [case[name] for name in ("dense_weight", "dense_bias", "rows", "item_weight", "targets", "negatives")]
    loss = ops.gru_sampled_loss(case["x_gates"], case["weight_hh"], offsets_of(LENGTHS), *arguments, max_len=33)
    wide = [a.float() if a.is_floating_point() else a for a in arguments]
    exact = ops.gru_sampled_loss(
        case["x_gates"].float(), case["weight_hh"].float(), offsets_of(LENGTHS), *wide, max_len=33
    )
    assert loss.dtype == torch.float32 and loss.dim() == 0
    torch.testing.assert_close(loss, exact, rtol=2e-2, atol=0)
