"""gru on the CPU beside torch.nn.GRU on a packed batch, forward and backward, input gates included on both sides.

pytest benchmarks/bench_gru.py --benchmark-only --benchmark-group-by=group
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import IMPLEMENTATIONS, measure
from torch import Tensor

from fastseq.ops import gru

WIDTH = 64
SHAPES = {"equal lengths": [50] * 64, "mixed lengths": [1 + 49 * i // 127 for i in range(128)]}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("hidden", [64, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_gru(benchmark: Any, shape: str, hidden: int, implementation: str) -> None:
    lengths = sorted(SHAPES[shape], reverse=True)  # as a packed batch wants them
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    module: Any = torch.nn.GRU(WIDTH, hidden, bias=False)

    def fastseq(p: float, x: Tensor, weight_ih: Tensor, weight_hh: Tensor) -> Tensor:
        return gru(F.linear(x, weight_ih), weight_hh, offsets, max_len=max(lengths))

    def eager(p: float, x: Tensor, weight_ih: Tensor, weight_hh: Tensor) -> Tensor:
        packed = torch.nn.utils.rnn.pack_sequence(x.split(lengths))
        padded, _ = torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0], batch_first=True)
        return torch.cat([row[:length] for row, length in zip(padded, lengths, strict=True)])

    leaves = [torch.randn(sum(lengths), WIDTH), module.weight_ih_l0, module.weight_hh_l0]
    functions, group = {"fastseq": fastseq, "eager": eager}, f"gru H={hidden}, {len(lengths)} of {shape}"
    measure(benchmark, implementation, functions, leaves, torch.randn(sum(lengths), hidden), group=group)
