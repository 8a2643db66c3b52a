"""gru_sampled_loss on the CPU beside nn.GRU on a packed batch, a linear layer and the loss in PyTorch.

pytest benchmarks/bench_gru_sampled_loss.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bench_gru import HIDDEN, NO_COMPILE, SHAPE, packed_gru, packing
from bench_sampled_loss import never_the_target
from op_bench import DIRECTIONS, EVENTS, IMPLEMENTATIONS, LENGTHS, ML_1M_ITEMS, WIDTH, measure, offsets_of
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastseq.ops import gru_sampled_loss

NEGATIVES = 2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gru_sampled_loss(benchmark: Any, direction: str, implementation: str) -> None:
    lengths = LENGTHS[SHAPE]
    offsets, (rows, sizes), zero = offsets_of(lengths), packing(lengths), torch.zeros(1, len(lengths), HIDDEN)
    targets = torch.randint(0, ML_1M_ITEMS, (EVENTS,))
    negatives, back = never_the_target(targets, ML_1M_ITEMS, NEGATIVES), rows.argsort()

    def fastseq(p: float, x: Tensor, w_ih: Tensor, w_hh: Tensor, dense: Tensor, bias: Tensor, table: Tensor) -> Tensor:
        return gru_sampled_loss(
            F.linear(x, w_ih), w_hh, offsets, dense, bias, None, table, targets, negatives,
            max_len=max(lengths), reduction="none",
        )  # fmt: skip

    def eager(p: float, x: Tensor, w_ih: Tensor, w_hh: Tensor, dense: Tensor, bias: Tensor, table: Tensor) -> Tensor:
        h = F.linear(packed_gru(PackedSequence(x[rows], sizes), zero, w_ih, w_hh)[back], dense, bias)
        positive = (h * F.embedding(targets, table)).sum(1, keepdim=True)
        return F.softplus((h[:, None] * F.embedding(negatives, table)).sum(2) - positive).mean(1)

    leaves = [torch.randn(EVENTS, WIDTH), torch.randn(3 * HIDDEN, WIDTH) / 10, torch.randn(3 * HIDDEN, HIDDEN) / 10]
    leaves += [torch.randn(WIDTH, HIDDEN) / 10, torch.randn(WIDTH), torch.randn(ML_1M_ITEMS + 1, WIDTH)]
    measure(
        benchmark, implementation, {"fastseq": fastseq, "eager": eager}, leaves, torch.rand(EVENTS),
        op="gru_sampled_loss", shape=f"{SHAPE}, H={HIDDEN}, {NEGATIVES} negatives", direction=direction,
        no_compile=NO_COMPILE,
    )  # fmt: skip
