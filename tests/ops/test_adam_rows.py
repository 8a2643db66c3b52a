"""ops/adam_rows.py: every implementation against torch.optim.Adam in float64 on the dense gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastseq import ops
from fastseq.ops.adam_rows import adam_rows, begin_step, end_step, new_history, restart
from tests.ops.backends import DEVICE, check_same_on_threads, moved, needs_triton
from tests.ops.compare import assert_as_accurate, relative_error

ROWS, WIDTH = 23, 13
STEPS = {"cpu": 120, "reference": 120, "triton": 24}  # the interpreter is slow
BETAS, EPS = (0.8, 0.99), 1e-4
BACKENDS = ["cpu", "reference", pytest.param("triton", marks=needs_triton)]
CPU = torch.device("cpu")


def rate(step: int) -> float:
    """From 0, and with a jump."""
    return 0.03 * min(1.0, (step - 1) / 10) * (0.3 if step > 15 else 1.0)


def gradients(width: int, steps: int = 1) -> list[tuple[Tensor, Tensor]]:
    """(rows, grad) of every step, in float32's precision: rows 0 and 1 are never touched, 2 only at the first step and
    3 late; one step touches nothing; sizes from 1 to 1e-6, around eps."""
    generator = torch.Generator().manual_seed(5)
    sizes = 10 ** -(6 * torch.rand(ROWS, width, generator=generator, dtype=torch.float64))
    popular = 1.0 / torch.arange(1.0, ROWS - 3)
    result = []
    for step in range(1, steps + 1):
        drawn = 4 + torch.multinomial(popular, 4, generator=generator)[: 0 if step == 3 else 4]
        extra = torch.tensor([2] if step == 1 else [3] if step == 20 else [], dtype=torch.int64)
        rows = torch.cat([drawn, extra]).sort().values
        grad = torch.randn(len(rows), width, generator=generator, dtype=torch.float64) * sizes[rows]
        result.append((rows, grad.float().double()))
    return result


def start(dtype: torch.dtype, width: int = WIDTH) -> list[Tensor]:
    weight = torch.randn(ROWS, width, generator=torch.Generator().manual_seed(6)).to(dtype)
    return [weight, torch.zeros_like(weight), torch.zeros_like(weight), torch.zeros(ROWS, dtype=torch.int32)]


def dense_adam(dtype: torch.dtype, width: int, steps: int) -> list[Tensor]:
    weight = start(dtype, width)[0].requires_grad_()
    optimizer = torch.optim.Adam([weight], betas=BETAS, eps=EPS, fused=True)
    for step, (rows, grad) in enumerate(gradients(width, steps), 1):
        optimizer.param_groups[0]["lr"] = rate(step)
        weight.grad = torch.zeros_like(weight).index_copy_(0, rows, grad.to(dtype))
        optimizer.step()
    return [weight.detach(), optimizer.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg_sq"]]


def by_rows(
    backend: str, dtype: torch.dtype, width: int = WIDTH, between: Callable[..., None] | None = None, flush: bool = True
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The table on the CPU after all steps, brought up to date, its history and clock.

    Args:
        between: called before every step with the table, its history and clock, the rows and a buffer's arguments.
    """
    on, steps = DEVICE if backend == "triton" else "cpu", STEPS[backend]
    table = [x.to(on) for x in start(dtype, width)]
    history, clock = new_history(BETAS, steps, torch.device(on))
    with ops.set_backend(backend), ops.record_served() as calls:
        for step, (rows, grad) in enumerate(gradients(width, steps), 1):
            # A buffer with room for more: what is beyond the count is not looked at.
            room = torch.full((3,), -7), torch.full((3, width), torch.nan, dtype=dtype)
            given = {
                "rows": torch.cat([rows, room[0]]),
                "grad": torch.cat([grad.to(dtype), room[1]]),
                "count": torch.tensor([len(rows)]),
            }
            given = moved(given, backend)
            if between is not None:
                between(table, history, clock, given["rows"], given["count"])
            begin_step(history, clock, rate(step), BETAS)
            adam_rows(*table, history, clock, **given, betas=BETAS, eps=EPS)
            end_step(history, clock, BETAS)
            if step == 12:  # shorter histories give the same
                adam_rows(*table, history, clock, betas=BETAS, eps=EPS)
                assert restart(history, clock, BETAS) == steps
        if flush:
            adam_rows(*table, history, clock, betas=BETAS, eps=EPS)
    assert set(calls) == {("adam_rows", backend)}
    return [x.cpu() for x in table], history, clock


@pytest.mark.parametrize(("backend", "dtype", "width"), [
    *((backend, dtype, width) for backend in ("cpu", "reference") for dtype in (torch.float64, torch.float32)
      for width in (WIDTH, 150)),
    *(pytest.param("triton", torch.float32, width, marks=needs_triton) for width in (WIDTH, 8)),
])  # fmt: skip
def test_equals_dense_adam(
    backend: str, dtype: torch.dtype, width: int, poisoned_empty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 to 1e-8 of the movement; in float32 it errs at most 1.5 times as much as PyTorch's own."""
    if backend == "triton":
        kernel = pytest.importorskip("fastseq.kernels.adam_rows")
        monkeypatch.setattr(kernel, "TILE", 128)  # several programs and steps over columns
        monkeypatch.setattr(kernel, "COLUMNS", 8)
    first, steps = start(torch.float64, width), STEPS[backend]
    exact, plain = dense_adam(torch.float64, width, steps), dense_adam(dtype, width, steps)
    (*result, last_step), *_ = by_rows(backend, dtype, width)
    moves, expected = result[0].double() - first[0], exact[0] - first[0]
    if dtype == torch.float64:
        assert relative_error(moves, expected) < 1e-8
        for x, y in zip(result[1:], exact[1:], strict=True):
            assert relative_error(x, y) < 1e-13
    else:
        assert relative_error(moves, expected) <= 1.5 * relative_error(plain[0].double() - first[0], expected)
        for x, y, z in zip(result[1:], plain[1:], exact[1:], strict=True):
            assert_as_accurate(x, y, z, 1.5, "moments")
    assert torch.equal(result[0][:2].double(), first[0][:2]) and not result[1][:2].any()
    touched = {int(row) for rows, _ in gradients(width, steps) for row in rows}
    assert last_step.tolist() == [steps if row in touched else 0 for row in range(ROWS)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_bits(backend: str) -> None:
    """Copies of rows are brought up to date as the table is; to catch up first changes no bit of a step."""
    table, history, clock = by_rows(backend, torch.float32, flush=False)
    whole = [x.clone() for x in table]
    some = torch.tensor([20, 4, 2, 0, 4])
    part = [x[some] for x in table]
    on = history.device
    with ops.set_backend(backend):
        for each in (whole, part):
            there = [x.to(on) for x in each]
            adam_rows(*there, history, clock, betas=BETAS, eps=EPS)
            each[:] = [x.cpu() for x in there]
    assert all(torch.equal(x[some], y) for x, y in zip(whole, part, strict=True))
    assert not torch.equal(whole[0], table[0])

    def catch_up(table: list[Tensor], history: Tensor, clock: Tensor, rows: Tensor, count: Tensor) -> None:
        adam_rows(*table, history, clock, rows, None, count, betas=BETAS, eps=EPS)

    again, *_ = by_rows(backend, torch.float32, between=catch_up, flush=False)
    assert all(torch.equal(x, y) for x, y in zip(again, table, strict=True))


def test_same_bits_for_any_number_of_threads() -> None:
    check_same_on_threads(lambda: by_rows("cpu", torch.float32)[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.0, 0.9), (0.3, 0.1)])
def test_every_element_and_beta(betas: tuple[float, float], backend: str) -> None:
    """Untouched since step t for n steps: each element's movement, from eps far below sqrt(v) to far above, against
    the plain sum, with a learning rate that changes at every step."""
    t, n, width = [1, 5, 40, 300, 900], 500, 33
    root = 10 ** torch.linspace(-15, 0, width, dtype=torch.float64)
    last = max(t) + n
    kind = torch.float32 if backend == "triton" else torch.float64
    history, clock = new_history(betas, last, CPU)
    rates = [0.5 + 0.4 * torch.tensor(float(step)).sin().item() for step in range(last + 1)]
    exact, fast = [], []
    for step in range(1, last + 1):
        begin_step(history, clock, rates[step], betas)
        end_step(history, clock, betas)
        if step - n not in t:
            continue
        first = step - n
        v = (root**2).expand(2, width).to(kind)
        table = [torch.zeros(2, width, dtype=kind), v.sqrt() * 0.7, v.clone(), torch.tensor([first, 0]).int()]
        k = torch.arange(1, n + 1, dtype=torch.float64)[:, None]
        scale = (1 - betas[1] ** (first + k)).sqrt()
        lr = torch.tensor(rates[first + 1 : step + 1], dtype=torch.float64)[:, None]
        # sqrt(v) * beta2 ** (k / 2) underflows before the sum over it matters
        moment = table[1][:1].double() * (betas[0] / betas[1] ** 0.5) ** k / (1 - betas[0] ** (first + k))
        exact.append((-lr * scale * moment / (v[:1].double().sqrt() + 1e-8 * scale * betas[1] ** (-k / 2))).sum(0))
        there = [x.to(DEVICE if backend == "triton" else "cpu") for x in table]
        with ops.set_backend(backend):
            adam_rows(*there, history.to(there[0].device), clock.to(there[0].device), betas=betas, eps=1e-8)
        assert not there[0][1].any() and there[3].tolist() == [step, 0]
        fast.append(there[0][0].cpu().double())
    tolerance = 2e-6 if kind == torch.float32 else 1e-7
    torch.testing.assert_close(torch.stack(fast), torch.stack(exact), rtol=tolerance, atol=0.0)


def test_autograd_notices_the_change() -> None:
    table = start(torch.float32)
    history, clock = new_history(BETAS, 3, CPU)
    begin_step(history, clock, 0.1, BETAS)
    rows, grad = gradients(WIDTH)[0]
    product = (table[0] * torch.ones(ROWS, WIDTH, requires_grad=True)).sum()
    adam_rows(*table, history, clock, rows, grad.float(), betas=BETAS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@needs_triton
def test_triton_leaves_unknown_rows_out() -> None:
    """What would raise on the CPU."""
    rows, grad = gradients(WIDTH)[0]
    results = []
    for more in ([], [-1], [ROWS]):
        table = [x.to(DEVICE) for x in start(torch.float32)]
        history, clock = new_history(BETAS, 3, torch.device(DEVICE))
        begin_step(history, clock, 0.1, BETAS)
        given = torch.cat([torch.tensor(more, dtype=torch.int64), rows]).to(DEVICE)
        slopes = torch.cat([torch.ones(len(more), WIDTH), grad.float()]).to(DEVICE)
        with ops.set_backend("triton"), ops.check_data(False):
            adam_rows(*table, history, clock, given, slopes, betas=BETAS)
        results.append(table)
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(other, results[0], strict=True))
