"""adam_rows beside PyTorch's optimizers, for the rows of an item table that one step touches.

dense  eager: torch.optim.Adam(fused=True) on the dense gradient, which is given; compiled: its formula
lazy   eager: torch.optim.SparseAdam on the rows alone; the same moves where every row had a gradient at the last
       step, as here. Its checks of the sparse gradient do not compile
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastseq.ops import adam_rows

from .case import FLOAT32, FORWARD, ITEMS, WIDTH, Case, Cases

LR, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-8
# data, items, distinct rows among 2,048 inputs, targets and negatives each (of 16,384: all there are, or 30,000)
SHAPES = [("ml-1m", ITEMS["ml-1m"], 2000), ("beauty", ITEMS["beauty"], 5000)]
LARGE = [("beauty, 16384 targets", ITEMS["beauty"], 30_000), ("V=1M", ITEMS["V=1M"], 5000)]


def case(device: torch.device, data: str, items: int, count: int, lazy: bool, width: int = WIDTH) -> Case:
    rows = torch.randperm(items + 1, device=device)[:count].sort().values
    grad = torch.randn(count, width, device=device)
    dense = torch.zeros(items + 1, width, device=device).index_copy(0, rows, grad)
    with torch.sparse.check_sparse_tensor_invariants(False):  # as an argument torch 2.11 warns of it
        sparse = torch.sparse_coo_tensor(rows[None], grad, dense.shape, is_coalesced=True)
    functional: Any = torch.optim._functional

    def fastseq(p: float, weight: Tensor, m: Tensor, v: Tensor, last: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        step += 1
        adam_rows(weight, m, v, last, rows, grad, step, lr=LR, betas=BETAS, eps=EPS, lazy=lazy)
        return weight, m, v

    def eager(p: float, weight: Tensor, m: Tensor, v: Tensor, last: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        step += 1
        if lazy:
            functional.sparse_adam(
                [weight], [sparse], [m], [v], [int(step)], eps=EPS, beta1=BETAS[0], beta2=BETAS[1], lr=LR,
                maximize=False,
            )  # fmt: skip
        elif torch.compiler.is_compiling():  # plain Adam, which becomes one kernel; a fused one stays as it is
            m.lerp_(dense, 1 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(dense, dense, value=1 - BETAS[1])
            first, second = 1 - BETAS[0] ** step, 1 - BETAS[1] ** step
            weight.sub_(LR / first * m / ((v / second).sqrt() + EPS))
        else:
            torch._fused_adam_(
                [weight], [dense], [m], [v], [], [step.float()], lr=LR, beta1=BETAS[0], beta2=BETAS[1],
                weight_decay=0.0, eps=EPS, amsgrad=False, maximize=False,
            )  # fmt: skip
        return weight, m, v

    # Every row had a gradient at step 1: dense Adam moves them all.
    leaves = [
        torch.randn(items + 1, width, device=device),
        torch.randn(items + 1, width, device=device) / 10,
        torch.rand(items + 1, width, device=device) / 1000,
        torch.ones(items + 1, dtype=torch.int64, device=device),
        torch.ones(1, dtype=torch.int64, device=device),
    ]
    moved = count if lazy else items + 1
    return Case(
        "adam_rows", f"{'lazy' if lazy else 'dense'}, {data} [{items + 1}, {width}], {count} rows",
        {"fastseq": fastseq, "eager": eager}, leaves, elements=((6 * moved + count) * width, 0), indices=8 * count,
        no_compile="torch.compile does not trace SparseAdam: a graph break at the sparse gradient" if lazy else "",
    )  # fmt: skip


CASES = [
    Cases(
        "adam_rows", case, "data items count lazy",
        cpu=[(*size, lazy) for size in SHAPES for lazy in (False, True)],
        cuda=[(*size, lazy) for size in SHAPES + LARGE for lazy in (False, True)],
        tiny=[("tiny", 9, 4, lazy, 16) for lazy in (False, True)], cuda_dtypes=[FLOAT32], directions=[FORWARD],
    )
]  # fmt: skip
