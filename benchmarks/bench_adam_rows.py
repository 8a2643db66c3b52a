"""adam_rows on the CPU beside PyTorch's optimizers, for the rows of an item table that one step touches.

pytest benchmarks/bench_adam_rows.py --benchmark-only

dense  eager: torch.optim.Adam(fused=True) on the dense gradient, which is given; compiled: its formula
lazy   eager: torch.optim.SparseAdam on the rows alone; the same moves where every row had a gradient at the last
       step, as here. Its checks of the sparse gradient do not compile
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_bench import BEAUTY_ITEMS, IMPLEMENTATIONS, ML_1M_ITEMS, WIDTH, measure
from torch import Tensor

from fastseq.ops import adam_rows

LR, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-8
# items, distinct rows among 2,048 inputs, targets and negatives each
SHAPES = {"ml-1m": (ML_1M_ITEMS, 2000), "beauty": (BEAUTY_ITEMS, 5000)}
NO_COMPILE = "torch.compile does not trace SparseAdam: a graph break at the sparse gradient"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("data", SHAPES)
def test_adam_rows(benchmark: Any, data: str, lazy: bool, implementation: str) -> None:
    items, count = SHAPES[data]
    rows = torch.randperm(items + 1)[:count].sort().values
    grad = torch.randn(count, WIDTH)
    dense = torch.zeros(items + 1, WIDTH).index_copy(0, rows, grad)
    sparse = torch.sparse_coo_tensor(rows[None], grad, dense.shape, is_coalesced=True)

    def fastseq(p: float, weight: Tensor, m: Tensor, v: Tensor, last: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        step += 1
        adam_rows(weight, m, v, last, rows, grad, step, lr=LR, betas=BETAS, eps=EPS, lazy=lazy)
        return weight, m, v

    def eager(p: float, weight: Tensor, m: Tensor, v: Tensor, last: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        step += 1
        if lazy:
            torch.optim._functional.sparse_adam(
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
    leaves = [torch.randn(items + 1, WIDTH), torch.randn(items + 1, WIDTH) / 10, torch.rand(items + 1, WIDTH) / 1000]
    leaves += [torch.ones(items + 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)]
    measure(
        benchmark, implementation, {"fastseq": fastseq, "eager": eager}, leaves, op="adam_rows",
        shape=f"{'lazy' if lazy else 'dense'}, {data} [{items + 1}, {WIDTH}], {count} rows",
        no_compile=NO_COMPILE if lazy else "",
    )  # fmt: skip
