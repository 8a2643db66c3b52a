"""gru on the CPU beside torch.nn.GRU on a packed batch, input gates included on both sides.

pytest benchmarks/bench_gru.py --benchmark-only
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import DIRECTIONS, EVENTS, IMPLEMENTATIONS, LENGTHS, WIDTH, measure, offsets_of
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastseq.ops import gru

SHAPE, HIDDEN = "ml-1m L=50", 128
NO_COMPILE = "torch.compile does not trace nn.GRU: a graph break around the call, which is eager's again"


def packing(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Rows of the jagged batch in the order of a packed one (step by step; lengths descend), and its batch sizes."""
    starts = offsets_of(lengths).tolist()
    active = [[i for i, length in enumerate(lengths) if length > step] for step in range(max(lengths))]
    rows = [starts[i] + step for step, sequences in enumerate(active) for i in sequences]
    return torch.tensor(rows), torch.tensor([len(sequences) for sequences in active])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gru(benchmark: Any, direction: str, implementation: str) -> None:
    lengths = LENGTHS[SHAPE]
    offsets, (rows, sizes) = offsets_of(lengths), packing(lengths)
    zero, back = torch.zeros(1, len(lengths), HIDDEN), rows.argsort()

    def fastseq(p: float, x: Tensor, weight_ih: Tensor, weight_hh: Tensor) -> Tensor:
        return gru(F.linear(x, weight_ih), weight_hh, offsets, max_len=max(lengths))

    def eager(p: float, x: Tensor, weight_ih: Tensor, weight_hh: Tensor) -> Tensor:
        return packed_gru(PackedSequence(x[rows], sizes), zero, weight_ih, weight_hh)[back]

    leaves = [torch.randn(EVENTS, WIDTH), torch.randn(3 * HIDDEN, WIDTH) / 10, torch.randn(3 * HIDDEN, HIDDEN) / 10]
    measure(
        benchmark, implementation, {"fastseq": fastseq, "eager": eager}, leaves, torch.randn(EVENTS, HIDDEN),
        op="gru", shape=f"{SHAPE}, H={HIDDEN}", direction=direction, no_compile=NO_COMPILE,
    )  # fmt: skip


def packed_gru(packed: PackedSequence, zero: Tensor, weight_ih: Tensor, weight_hh: Tensor) -> Tensor:
    """What nn.GRU(bias=False) calls for a packed batch, on weights that are arguments; rows in packed order."""
    return torch.gru(packed.data, packed.batch_sizes, zero, [weight_ih, weight_hh], False, 1, 0.0, False, False)[0]
