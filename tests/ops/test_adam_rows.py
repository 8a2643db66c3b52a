"""ops/adam_rows.py: against torch.optim.Adam on the dense gradient, and the lazy form against its definition."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastseq import ops
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
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 8):
            torch.set_num_threads(count)
            results.append(state(torch.float32))
            for step, (rows, grad) in enumerate(gradients(torch.float32), 1):
                ops.adam_rows(*results[-1], rows, grad, step, lr=0.03)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("lazy", [False, True])
def test_opcheck_and_compile(lazy: bool) -> None:
    rows, grad = next(gradients(torch.float32))
    arguments = (*state(torch.float32), rows, grad, torch.tensor(1), 0.1, 0.9, 0.999, 1e-8, lazy)
    torch.library.opcheck(torch.ops.fastseq.adam_rows.default, arguments)

    def step(weight: Tensor, m: Tensor, v: Tensor, last: Tensor, rows: Tensor, grad: Tensor, number: Tensor) -> Tensor:
        ops.adam_rows(weight, m, v, last, rows, grad, number, lr=0.1, lazy=lazy)
        return weight.sum()

    plain, compiled = state(torch.float32), state(torch.float32)
    compiled_step = torch.compile(step, fullgraph=True, backend="aot_eager")
    for number, (rows, grad) in enumerate(gradients(torch.float32, 3), 1):
        step(*plain, rows, grad, torch.tensor(number))
        compiled_step(*compiled, rows, grad, torch.tensor(number))
    assert all(torch.equal(a, b) for a, b in zip(plain, compiled, strict=True))


def test_bfloat16_and_strided_state() -> None:
    """What C++ cannot take as it is, is still updated in place."""
    rows, grad = next(gradients(torch.float32))
    weight, first, second, last_step = state(torch.float32)
    half = (weight.bfloat16(), first.bfloat16(), second.bfloat16(), last_step)
    ops.adam_rows(*half, rows, grad, 1, lr=0.1)
    weight, first, second, last_step = state(torch.bfloat16)
    wide = (weight.float(), first.float(), second.float(), last_step)
    ops.adam_rows(*wide, rows, grad.bfloat16().float(), 1, lr=0.1)
    assert torch.equal(half[0], wide[0].bfloat16()) and torch.equal(half[1], wide[1].bfloat16())
    weight, first, second, last_step = state(torch.float32)
    strided = (weight.t().contiguous().t(), first.t().contiguous().t(), second.t().contiguous().t(), last_step)
    ops.adam_rows(*strided, rows, grad, 1, lr=0.1)
    plain = state(torch.float32)
    ops.adam_rows(*plain, rows, grad, 1, lr=0.1)
    assert all(torch.equal(a, b) for a, b in zip(strided, plain, strict=True))


def test_autograd_notices_the_change() -> None:
    tensors = state(torch.float32)
    rows, grad = next(gradients(torch.float32))
    factor = torch.ones(ROWS, WIDTH, requires_grad=True)
    product = (tensors[0] * factor).sum()
    ops.adam_rows(*tensors, rows, grad, 1, lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": torch.tensor([3, ROWS])}, IndexError, rf"rows\[1\] is {ROWS}, expected 0 to {ROWS - 1}"),
        ({"rows": torch.tensor([-1, 3])}, IndexError, r"rows\[0\] is -1"),
        ({"rows": torch.tensor([3, 3])}, ValueError, r"rows\[1\] is 3 again, as rows\[0\]"),
        ({"step": 0}, ValueError, r"step is 0, expected at least 1"),
        ({"last_step": torch.zeros(3)}, ValueError, r"last_step is torch.float32 \[3\], expected torch.int64 \[23\]"),
        ({"exp_avg": torch.zeros(2, 2)}, ValueError, r"exp_avg is torch.float32 \[2, 2\]"),
        ({"grad": torch.zeros(2, 3)}, ValueError, r"grad \[2, 3\], expected \[V, d\] and \[R, d\]"),
    ],
)
def test_bad_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    names = ("weight", "exp_avg", "exp_avg_sq", "last_step")
    arguments = dict(zip(names, state(torch.float32), strict=True))
    arguments |= {"rows": torch.tensor([3, 4]), "grad": torch.ones(2, WIDTH)}
    before = arguments["weight"].clone()
    with pytest.raises(error, match=message):
        ops.adam_rows(**{**arguments, "step": 1, **change}, lr=0.1)  # type: ignore[arg-type]
    assert torch.equal(arguments["weight"], before)
    assert math.isclose(float(arguments["exp_avg"].sum()), 0.0)
