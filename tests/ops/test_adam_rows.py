"""ops/adam_rows.py: against torch.optim.Adam on the dense gradient, and the lazy form against its definition."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastseq import ops
from tests.ops.backends import DEVICE, check_same_on_threads, needs_triton
from tests.ops.compare import assert_as_accurate, relative_error

ROWS, WIDTH, STEPS = 23, 13, 10
State = tuple[Tensor, Tensor, Tensor, Tensor]  # weight, exp_avg, exp_avg_sq, last_step


def gradients(dtype: torch.dtype, steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, grad) of every step; rows 0 and 1 are never touched, and one step touches nothing."""
    generator = torch.Generator().manual_seed(5)
    for step in range(steps):
        rows = 2 + torch.randperm(ROWS - 2, generator=generator)[: 0 if step == 3 else 6]
        yield rows, torch.randn(len(rows), WIDTH, generator=generator, dtype=torch.float64).to(dtype)


def state(dtype: torch.dtype) -> State:
    weight = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(6), dtype=torch.float64).to(dtype)
    return weight, torch.zeros_like(weight), torch.zeros_like(weight), torch.zeros(ROWS, dtype=torch.int64)


def dense_adam(dtype: torch.dtype) -> list[Tensor]:
    weight = state(dtype)[0].requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.03, betas=(0.8, 0.99), eps=1e-6)
    for rows, grad in gradients(torch.float32):
        weight.grad = torch.zeros_like(weight).index_copy_(0, rows, grad.to(dtype))
        optimizer.step()
    return [weight.detach(), optimizer.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg_sq"]]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_dense_adam(backend: str, dtype: torch.dtype) -> None:
    results = state(dtype)
    first = results[0].clone()
    results[0].requires_grad_()
    with ops.set_backend(backend), ops.record_served() as calls:
        for step, (rows, grad) in enumerate(gradients(torch.float32), 1):
            ops.adam_rows(*results, rows, grad.to(dtype), step, lr=0.03, betas=(0.8, 0.99), eps=1e-6)
    assert calls == [("adam_rows", backend)] * STEPS
    exact = dense_adam(torch.float64)
    # The same rounded start and gradients: state() and gradients() draw in float64 and round.
    if dtype == torch.float32:
        exact_start = state(torch.float32)[0].double() - state(torch.float64)[0]
        exact[0] = exact[0] + exact_start  # Adam's moves do not depend on the weights
    for name, result, pytorch, reference in zip(
        ("weight", "exp_avg", "exp_avg_sq"), results, dense_adam(dtype), exact, strict=False
    ):
        if dtype == torch.float64:
            assert relative_error(result.detach(), reference) < 1e-14, name
        else:
            assert_as_accurate(result.detach(), pytorch, reference, 2, name)
    assert torch.equal(results[0][:2], first[:2]) and not results[3][:2].any()
    touched = results[3] > 0
    assert (results[3][touched] == STEPS).all() and touched.sum() > 6


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_lazy_decays_moments_and_skips_the_moves_between(backend: str) -> None:
    """One row with gradients at steps 1 and 4: moments as dense Adam's at 4, no move at 2 and 3."""
    weight, exp_avg, exp_avg_sq, last_step = state(torch.float64)
    start = weight.clone()
    one, four = torch.randn(2, 1, WIDTH, dtype=torch.float64)
    row = torch.tensor([7])
    with ops.set_backend(backend):
        ops.adam_rows(weight, exp_avg, exp_avg_sq, last_step, row, one, 1, lr=0.1, lazy=True)
        after_one = weight.clone()
        ops.adam_rows(weight, exp_avg, exp_avg_sq, last_step, row, four, 4, lr=0.1, lazy=True)
    m = 0.9**3 * (0.1 * one) + 0.1 * four
    v = 0.999**3 * (0.001 * one**2) + 0.001 * four**2
    torch.testing.assert_close(exp_avg[row], m)
    torch.testing.assert_close(exp_avg_sq[row], v)
    torch.testing.assert_close(after_one[row], start[row] - 0.1 * one / (one.abs() + 1e-8))
    move = 0.1 * (m / (1 - 0.9**4)) / ((v / (1 - 0.999**4)).sqrt() + 1e-8)
    torch.testing.assert_close(weight[row], after_one[row] - move)
    others = torch.arange(ROWS) != 7
    assert torch.equal(weight[others], start[others]) and not exp_avg[others].any()
    assert last_step[7] == 4 and last_step.sum() == 4


def test_lazy_equals_dense_where_every_row_is_touched() -> None:
    lazy, dense = state(torch.float32), state(torch.float32)
    for step in range(1, 6):
        rows, grad = torch.randperm(ROWS), torch.randn(ROWS, WIDTH)
        ops.adam_rows(*lazy, rows, grad, step, lr=0.1, lazy=True)
        ops.adam_rows(*dense, rows, grad, torch.tensor(step), lr=0.1)
    assert all(torch.equal(a, b) for a, b in zip(lazy, dense, strict=True))


def test_same_bits_for_any_number_of_threads() -> None:
    def steps() -> list[Tensor]:
        tensors = state(torch.float32)
        for step, (rows, grad) in enumerate(gradients(torch.float32), 1):
            ops.adam_rows(*tensors, rows, grad, step, lr=0.03)
        return tensors

    check_same_on_threads(steps)


def test_bfloat16_state() -> None:
    """What C++ cannot take as it is, is still updated in place (strides: test_checks.py)."""
    rows, grad = next(gradients(torch.float32))
    weight, first, second, last_step = state(torch.float32)
    half = (weight.bfloat16(), first.bfloat16(), second.bfloat16(), last_step)
    ops.adam_rows(*half, rows, grad, 1, lr=0.1)
    weight, first, second, last_step = state(torch.bfloat16)
    wide = (weight.float(), first.float(), second.float(), last_step)
    ops.adam_rows(*wide, rows, grad.bfloat16().float(), 1, lr=0.1)
    assert torch.equal(half[0], wide[0].bfloat16()) and torch.equal(half[1], wide[1].bfloat16())


def test_autograd_notices_the_change() -> None:
    tensors = state(torch.float32)
    rows, grad = next(gradients(torch.float32))
    factor = torch.ones(ROWS, WIDTH, requires_grad=True)
    product = (tensors[0] * factor).sum()
    ops.adam_rows(*tensors, rows, grad, 1, lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def step_by_triton(tensors: State, rows: Tensor, grad: Tensor, step: int, **options: object) -> None:
    with ops.set_backend("triton"), ops.record_served() as calls:
        ops.adam_rows(*tensors, rows.to(DEVICE), grad.to(DEVICE), step, **options)  # type: ignore[arg-type]
    assert calls == [("adam_rows", "triton")]


def on_device(tensors: State) -> State:
    return tuple(x.to(DEVICE) for x in tensors)  # type: ignore[return-value]


@needs_triton
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("width", [WIDTH, 8])
def test_triton(lazy: bool, width: int, poisoned_empty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As accurate as the reference in float32; two programs and two column steps at width 13, and other chunks at 8."""
    from fastseq.kernels import adam_rows as kernel

    monkeypatch.setattr(kernel, "TILE", 128)
    monkeypatch.setattr(kernel, "COLUMNS", 8)
    options = dict(lr=0.03, betas=(0.8, 0.99), eps=1e-6, lazy=lazy)
    start = (*(x[:, :width].contiguous() for x in state(torch.float32)[:3]), state(torch.float32)[3])
    fast = on_device(start)
    plain = tuple(x.clone() for x in start)
    exact = tuple(x.double() if x.is_floating_point() else x.clone() for x in start)
    for step, (rows, grad) in enumerate(gradients(torch.float32), 1):
        step_by_triton(fast, rows, grad[:, :width], step, **options)
        with ops.set_backend("reference"):
            ops.adam_rows(*plain, rows, grad[:, :width], step, **options)  # type: ignore[arg-type]
            ops.adam_rows(*exact, rows, grad[:, :width].double(), step, **options)  # type: ignore[arg-type]
    for name, x, pytorch, reference in zip(("weight", "exp_avg", "exp_avg_sq"), fast, plain, exact, strict=False):
        assert_as_accurate(x.cpu(), pytorch, reference, 2, name)
    assert torch.equal(fast[3].cpu(), exact[3])
    assert torch.equal(fast[0][:2].cpu(), start[0][:2])


@needs_triton
def test_triton_first_step_and_late_ones() -> None:
    """1 - beta ** step where it cancels, and where it is 1."""
    for step in (1, 2, 1000, 10**7):
        fast, exact = on_device(state(torch.float32)), state(torch.float32)
        for tensors in (fast, exact):
            tensors[3].fill_(step - 1)
        rows, grad = next(gradients(torch.float32))
        exact = tuple(x.double() if x.is_floating_point() else x for x in exact)
        moved = exact[0].clone()
        step_by_triton(fast, rows, grad, step, lr=1.0)
        with ops.set_backend("reference"):
            ops.adam_rows(*exact, rows, grad.double(), step, lr=1.0)  # type: ignore[arg-type]
        moved -= exact[0]
        before = state(torch.float32)[0].double()
        assert relative_error(before - fast[0].cpu().double(), moved) < 1e-6, step


@needs_triton
def test_triton_half_types_and_unknown_rows() -> None:
    rows, grad = next(gradients(torch.float32))
    weight, first, second, last_step = on_device(state(torch.float32))
    half = (weight.bfloat16(), first.bfloat16(), second.bfloat16(), last_step.clone())
    wide = (*(x.float() for x in half[:3]), last_step.clone())
    step_by_triton(half, rows, grad, 1, lr=0.1)
    step_by_triton(wide, rows, grad.bfloat16().float(), 1, lr=0.1)
    for a, b in zip(half[:3], wide[:3], strict=True):
        # The interpreter cuts off what does not fit into bfloat16; a GPU rounds.
        torch.testing.assert_close(a, b.bfloat16(), rtol=2.0**-7 if DEVICE == "cpu" else 0.0, atol=0.0)
    plain = (weight.clone(), first.clone(), second.clone(), last_step.clone())
    step_by_triton(plain, rows, grad, 1, lr=0.1)
    for lazy in (False, True):  # what would raise on the CPU is left out
        other = (weight.clone(), first.clone(), second.clone(), last_step.clone())
        extra = torch.cat([rows, torch.tensor([-1, ROWS])]), torch.cat([grad, torch.ones(2, WIDTH)])
        with ops.check_data(False):
            step_by_triton(other, *extra, 1, lr=0.1, lazy=lazy)
        assert all(torch.equal(a, b) for a, b in zip(other, plain, strict=True))
    before = weight._version
    step_by_triton((weight, first, second, last_step), rows, grad, 1, lr=0.1)
    assert weight._version > before, "autograd must notice the change"
