"""embed_sequence on the CPU beside its parts in PyTorch, forward and backward (dense gradients on both sides).

pytest benchmarks/bench_embed_sequence.py --benchmark-only --benchmark-group-by=group
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import IMPLEMENTATIONS, RNG, measure
from torch import Tensor

from fastseq.ops import embed_sequence

SEQUENCES, LENGTH, WIDTH = 40, 200, 64


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("n_items", [3416, 100_000])
def test_embed_sequence(benchmark: Any, n_items: int, implementation: str) -> None:
    offsets = (torch.arange(SEQUENCES + 1) * LENGTH).int()
    items, positions = torch.randint(0, n_items, (SEQUENCES * LENGTH,)), torch.arange(LENGTH).repeat(SEQUENCES)

    def fastseq(p: float, item: Tensor, position: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return embed_sequence(
            items, offsets, item, position, weight, bias, dropout_p=p, rng=RNG, padding_idx=n_items
        )  # fmt: skip

    def eager(p: float, item: Tensor, position: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        embedded = F.embedding(items, item, n_items) + F.embedding(positions, position)
        return F.dropout(F.layer_norm(embedded, (WIDTH,), weight, bias, 1e-8), p)

    leaves = [torch.randn(n_items + 1, WIDTH), torch.randn(LENGTH, WIDTH), torch.randn(WIDTH), torch.randn(WIDTH)]
    functions, group = {"fastseq": fastseq, "eager": eager}, f"embed_sequence of {n_items} items"
    measure(benchmark, implementation, functions, leaves, torch.randn(len(items), WIDTH), group=group, dropout_p=0.3)
