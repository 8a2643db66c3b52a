"""adam_rows beside PyTorch's Adam, for an item table of which one step touches some rows.

step   the rows with a gradient missed 1 to 200 steps. eager: torch.optim.Adam(fused=True) on the dense gradient, which
       is given and need not be made; compiled: its formula
flush  every row missed 1 to 200 steps. eager: one pass of the same fused Adam

The rivals move the table on by one step, adam_rows also by those that were missed: they do not compute the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastseq.ops import adam_rows
from fastseq.ops.adam_rows import begin_step, end_step, new_history

from .case import FLOAT32, FORWARD, ITEMS, WIDTH, Case, Cases

LR, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-8
PAST, MISSED = 1000, 200  # steps taken, of which a row has missed at most so many
# data, items, distinct rows among 2,048 inputs, targets and negatives each
SHAPES = [("ml-1m", ITEMS["ml-1m"], 2000), ("beauty", ITEMS["beauty"], 5000), ("V=1M", ITEMS["V=1M"], 5000)]


def case(device: torch.device, data: str, items: int, count: int, flush: bool, width: int = WIDTH) -> Case:
    rows = torch.randperm(items + 1, device=device)[:count].sort().values
    grad = torch.randn(count, width, device=device)
    dense = torch.zeros(items + 1, width, device=device).index_copy(0, rows, grad)
    history, clock = new_history(BETAS, PAST + 1, device)
    if device.type != "meta":
        for _ in range(PAST):
            begin_step(history, clock, LR, BETAS)
            end_step(history, clock, BETAS)
        if not flush:
            begin_step(history, clock, LR, BETAS)

    def fastseq(p: float, weight: Tensor, m: Tensor, v: Tensor, last: Tensor) -> tuple[Tensor, ...]:
        last_step = last.clone()  # every run has as much to make up for
        if flush:
            adam_rows(weight, m, v, last_step, history, clock, betas=BETAS, eps=EPS)
        else:
            adam_rows(weight, m, v, last_step, history, clock, rows, grad, betas=BETAS, eps=EPS)
        return weight, m, v

    def eager(p: float, weight: Tensor, m: Tensor, v: Tensor, last: Tensor) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():  # plain Adam, which becomes one kernel; a fused one stays as it is
            m.lerp_(dense, 1 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(dense, dense, value=1 - BETAS[1])
            first, second = 1 - BETAS[0] ** (PAST + 1), 1 - BETAS[1] ** (PAST + 1)
            weight.sub_(LR / first * m / ((v / second).sqrt() + EPS))
        else:
            steps: Any = [torch.full((), float(PAST), device=weight.device)]
            torch._fused_adam_(
                [weight], [dense], [m], [v], [], steps, lr=LR, beta1=BETAS[0], beta2=BETAS[1], weight_decay=0.0,
                eps=EPS, amsgrad=False, maximize=False,
            )  # fmt: skip
        return weight, m, v

    leaves = [
        torch.randn(items + 1, width, device=device),
        torch.randn(items + 1, width, device=device) / 10,
        torch.rand(items + 1, width, device=device) / 1000,
        PAST - torch.randint(1, MISSED + 1, (items + 1,), device=device, dtype=torch.int32),
    ]
    moved = items + 1 if flush else count
    return Case(
        "adam_rows", f"{'flush' if flush else 'step'}, {data} [{items + 1}, {width}], {moved} rows",
        {"fastseq": fastseq, "eager": eager}, leaves, elements=((6 if flush else 7) * moved * width, 0),
        indices=8 * moved, valid=finite,
    )  # fmt: skip


def finite(results: Any) -> bool:
    """Other work than the reference's: tests/ops/test_adam_rows.py compares the two over whole trainings."""
    return all(bool(x.isfinite().all()) for x in results)


CASES = [
    Cases(
        "adam_rows", case, "data items count flush",
        cpu=[(*size, flush) for flush in (False, True) for size in SHAPES],
        cuda=[(*size, flush) for flush in (False, True) for size in SHAPES],
        tiny=[("tiny", 9, 4, flush, 16) for flush in (False, True)], cuda_dtypes=[FLOAT32], directions=[FORWARD],
    )
]  # fmt: skip
