"""fastseq/optim.py: tables by rows end up where PyTorch's Adam brings them, and states are resumed bit for bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastseq import optim
from fastseq.optim import ROOM, RowAdam, RowGradient

V, D = 200, 5
# Learning rates by step, from 1.
SCHEDULES: dict[str, Callable[[int], float]] = {
    "constant": lambda t: 0.01,
    "warm-up": lambda t: 0.01 * min(1.0, (t - 1) / 300),
    "cosine": lambda t: 0.005 * (1 + math.cos(t / 200)),
    "steps": lambda t: 0.01 * 0.3 ** (t // 500),
    "exponential": lambda t: 0.01 * 0.999**t,
    "restarts": lambda t: 0.01 * (1 + math.cos(math.pi * (t % 400) / 400)) / 2,
}


def sparse(rows: Tensor, grad: Tensor, coalesced: bool = True) -> Tensor:
    with torch.sparse.check_sparse_tensor_invariants(False):
        return torch.sparse_coo_tensor(rows[None], grad, (V, D), is_coalesced=coalesced or None)


class Gradients:
    """Long-tailed rows; the last three are never touched, those before them first in the second half or once, early.
    Sizes of elements from 1 to 1e-9, around eps."""

    def __init__(self, steps: int) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.popular = 1.0 / torch.arange(1.0, V + 1) ** 1.2
        self.popular[-20:] = 0.0
        self.sizes = 10 ** -(9 * torch.rand(V, D, generator=self.generator, dtype=torch.float64))
        self.steps = steps

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        rows = torch.multinomial(self.popular, 8, generator=self.generator)
        extra = [V - 15] if step == 4 else [V - 10] if step in (self.steps * 2 // 3, self.steps - 5) else []
        rows = torch.cat([rows, torch.tensor(extra, dtype=torch.int64)]).sort().values
        grad = torch.randn(len(rows), D, generator=self.generator, dtype=torch.float64) * self.sizes[rows]
        return rows, grad.float().double()


def trained(kind: type[torch.optim.Optimizer], dtype: torch.dtype, steps: int, clip: float | None) -> dict[str, Any]:
    """By schedule: where a table's weights have moved in ``steps`` steps, how far they have travelled, its moments."""
    start = torch.randn(V, D, generator=torch.Generator().manual_seed(1)).to(dtype)
    tables = {name: start.clone().requires_grad_() for name in SCHEDULES}
    more = {} if kind is RowAdam else {"fused": True}
    optimizer = kind([{"params": [table]} for table in tables.values()], lr=0.01, **more)  # type: ignore[call-arg]
    gradients = Gradients(steps)
    travelled = {name: torch.zeros(V, D, dtype=torch.float64) for name in tables}
    for step in range(1, steps + 1):
        rows, grad = gradients(step)
        for group, rate, table in zip(optimizer.param_groups, SCHEDULES.values(), tables.values(), strict=True):
            group["lr"] = rate(step)
            slope = grad.to(dtype)
            if clip is not None:  # clip_grad_norm_ takes no sparse gradients
                slope = slope * min(1.0, clip / float(grad.norm()))
            table.grad = (
                sparse(rows, slope) if kind is RowAdam else torch.zeros(V, D, dtype=dtype).index_copy(0, rows, slope)
            )
        before = {name: table.detach().clone() for name, table in tables.items()}
        optimizer.step()
        for name, table in tables.items():
            travelled[name] += (table.detach() - before[name]).abs().double()
    if isinstance(optimizer, RowAdam):
        before = {name: optimizer.current(table) for name, table in tables.items()}
        optimizer.flush()
        assert all(torch.equal(before[name], table) for name, table in tables.items())
    moments = {
        name: [optimizer.state[table][key] for key in ("exp_avg", "exp_avg_sq")] for name, table in tables.items()
    }
    return {
        name: [table.detach().double() - start.double(), travelled[name], *moments[name]]
        for name, table in tables.items()
    }


@pytest.mark.parametrize(("steps", "clip"), [(300, 0.5), pytest.param(3000, None, marks=pytest.mark.slow)])
def test_equals_dense_adam(steps: int, clip: float | None) -> None:
    """In float64 within 1e-8 of the movement, and each element within 1e-6 of what it has travelled; in float32 no
    farther than PyTorch's own is, 1.5 times."""
    exact, plain = (trained(torch.optim.Adam, dtype, steps, clip) for dtype in (torch.float64, torch.float32))
    double, single = (trained(RowAdam, dtype, steps, clip) for dtype in (torch.float64, torch.float32))
    for name, (moved, travelled, *moments) in exact.items():
        off = double[name][0] - moved
        assert off.norm() < 1e-8 * moved.norm(), name
        assert (off.abs() <= 1e-6 * travelled + 1e-14).all(), name
        assert not double[name][0][-3:].any()
        for x, y in zip(double[name][2:], moments, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-20)
        assert (single[name][0] - moved).norm() <= 1.5 * (plain[name][0] - moved).norm(), name


class Run:
    """A table and a dense weight, trained by rows."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(2)
        self.table = torch.randn(V, D, generator=generator).requires_grad_()
        self.weight = torch.randn(4, 3, generator=generator).requires_grad_()
        self.optimizer = RowAdam([{"params": [self.table]}, {"params": [self.weight], "weight_decay": 0.1}], lr=0.01)

    def train(self, first: int, stop: int) -> None:
        gradients = Gradients(60)
        for step in range(1, stop):
            rows, grad = gradients(step)
            if step < first:
                continue
            self.optimizer.catch_up(self.table, rows)
            self.table.grad, self.weight.grad = sparse(rows, grad.float()), torch.full((4, 3), 1.0 / step)
            self.optimizer.step()

    def bits(self) -> list[Tensor]:
        return [self.table.detach(), self.weight.detach(), *(
            x for state in self.optimizer.state.values() for _, x in sorted(state.items())
        )]  # fmt: skip


def test_resumes_bit_for_bit_and_readers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "BLOCK", 64)
    whole, half = Run(), Run()
    whole.train(1, 61)
    half.train(1, 31)
    rows = torch.tensor([7, 0, V - 15, 7])
    read = half.optimizer.current(half.table)
    assert torch.equal(half.optimizer.current(half.table, rows), read[rows])
    assert torch.equal(half.optimizer.current(half.table, slice(5, 9)), read[5:9])
    assert torch.equal(half.optimizer.current(half.weight), half.weight)
    saved = copy.deepcopy(half.optimizer.state_dict())
    resumed = Run()
    resumed.table.data.copy_(half.table.data)
    resumed.weight.data.copy_(half.weight.data)
    resumed.optimizer.load_state_dict(saved)
    for run in (half, resumed):
        run.train(31, 61)
        assert all(torch.equal(x, y) for x, y in zip(run.bits(), whole.bits(), strict=True))
    half.optimizer.flush()
    assert torch.equal(half.table, whole.optimizer.current(whole.table))
    assert half.optimizer.state[half.table]["last_step"].max() == 60


def test_takes_what_pytorch_takes() -> None:
    """Rows given twice, no rows, a dense gradient after sparse ones, sparse ones after dense ones, and none at all: as
    dense Adam."""
    plain, table = (
        torch.randn(V, D, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) for _ in range(2)
    )
    dense, by_rows = torch.optim.Adam([plain.requires_grad_()]), RowAdam([table.requires_grad_()])
    twice, grad = torch.tensor([5, 2, 5]), torch.randn(3, D, dtype=torch.float64)
    summed = torch.zeros(V, D, dtype=torch.float64).index_add(0, twice, grad)
    rows, count = torch.tensor([2, 9, 0, 0]), torch.tensor([2])
    values = torch.randn(4, D, dtype=torch.float64)
    buffer = torch.zeros(V, D, dtype=torch.float64).index_add(0, rows[:2], values[:2])
    for given, full in (
        (summed, summed), (sparse(twice, grad, coalesced=False), summed), (sparse(twice[:0], grad[:0]), summed * 0),
        (None, None), (RowGradient(rows, values, count), buffer), (summed, summed),
        (sparse(twice[:1], grad[:1]), torch.zeros_like(summed).index_copy(0, twice[:1], grad[:1])),
    ):  # fmt: skip
        by_buffer = isinstance(given, RowGradient)
        plain.grad, table.grad = full, None if by_buffer else given
        dense.step()
        by_rows.step(rows={table: given} if by_buffer else None)
    torch.testing.assert_close(by_rows.current(table), plain.detach(), rtol=1e-10, atol=1e-12)
    assert int(by_rows.state[table]["clock"][0]) == 6


@pytest.mark.parametrize("how", ["plain", "GradScaler", "eager", "aot_eager"])
def test_sparse_gradients_of_a_users_own_module(how: str) -> None:
    """nn.Embedding(sparse=True), with a GradScaler too, and where the module and the step are compiled."""

    def train(rows: bool) -> torch.Tensor:
        torch.manual_seed(0)
        embedding, linear = nn.Embedding(50, 8, sparse=rows), nn.Linear(8, 1)
        net = nn.Sequential(embedding, linear)
        optimizer: Any = (RowAdam if rows else torch.optim.Adam)(net.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3, enabled=how == "GradScaler")
        compiled = how not in ("plain", "GradScaler")
        forward = torch.compile(net, backend=how) if compiled else net
        for _ in range(30):
            ids = torch.randint(0, 50, (6,))
            if rows:
                optimizer.catch_up(embedding.weight, ids.unique())
            scaler.scale(forward(ids).square().mean()).backward()
            if compiled:
                torch.compile(optimizer.step, backend="eager")()
            else:
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
        if rows:
            optimizer.flush()
        return embedding.weight.detach()

    torch.testing.assert_close(train(rows=True), train(rows=False), rtol=1e-5, atol=1e-6)


def test_histories_grow() -> None:
    """Beyond their first size, and by what is reserved; growing changes no bit."""
    short, long = (torch.zeros(3, 2, requires_grad=True) for _ in range(2))
    grows, reserved = RowAdam([short]), RowAdam([long])
    reserved.reserve(2 * ROOM)
    for step in range(ROOM + 3):
        for optimizer, table in ((grows, short), (reserved, long)):
            optimizer.step(rows={table: RowGradient(torch.tensor([step % 2]), torch.full((1, 2), 0.1 + step))})
    sizes = [len(optimizer.state[table]["history"]) for optimizer, table in ((grows, short), (reserved, long))]
    assert sizes[0] > ROOM + 300 and sizes[1] > 2 * ROOM
    assert torch.equal(grows.current(short), reserved.current(long)) and torch.equal(short, long)
    reserved.reserve(5 * ROOM)
    assert len(reserved.state[long]["history"]) > 6 * ROOM
    assert torch.equal(grows.current(short), reserved.current(long))


def test_refusals() -> None:
    table = torch.zeros(V, D, requires_grad=True)
    grad = sparse(torch.tensor([1]), torch.ones(1, D))
    for settings, message in (
        (dict(weight_decay=0.1), "decay touches every row; put it into a group with weight_decay=0"),
        (dict(betas=(0.99, 0.9)), r"rows need betas\[0\] < sqrt\(betas\[1\]\)"),
    ):
        optimizer = RowAdam([table], **settings)  # type: ignore[arg-type]
        table.grad = grad
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        table.grad = torch.ones(V, D)
        optimizer.step()
    optimizer = RowAdam([table])
    table.grad = grad
    optimizer.step()
    optimizer.param_groups[0]["betas"] = (0.5, 0.9)
    with pytest.raises(ValueError, match="betas and eps of a table may not change"):
        optimizer.step()
    table.grad = torch.ones(V, D).to_sparse()
    with pytest.raises(ValueError, match="expected dense or sparse COO with 1 sparse dimension"):
        optimizer.step()
    for settings, message in (
        (dict(lr=-1.0), "lr is -1.0"),
        (dict(betas=(1.0, 0.9)), "betas is"),
        (dict(eps=-1.0), "eps"),
    ):
        with pytest.raises(ValueError, match=message):
            RowAdam([table], **settings)  # type: ignore[arg-type]
