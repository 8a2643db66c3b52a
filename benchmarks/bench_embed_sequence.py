"""embed_sequence on the CPU beside its parts in PyTorch (dense gradients on both sides).

pytest benchmarks/bench_embed_sequence.py --benchmark-only

SASRec's embedding has positions, LayerNorm and dropout 0.3; GRU4Rec's is the item and dropout 0.2.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import (
    BEAUTY_ITEMS,
    DIRECTIONS,
    EVENTS,
    IMPLEMENTATIONS,
    LENGTHS,
    ML_1M_ITEMS,
    RNG,
    WIDTH,
    measure,
    offsets_of,
)  # fmt: skip
from torch import Tensor

from fastseq.ops import embed_sequence

# data set, items, whether with positions and LayerNorm
SHAPES = {
    "SASRec, ml-1m L=200": ("ml-1m L=200", ML_1M_ITEMS, True),
    "SASRec, beauty L=50": ("beauty L=50", BEAUTY_ITEMS, True),
    "GRU4Rec, ml-1m L=50": ("ml-1m L=50", ML_1M_ITEMS, False),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_embed_sequence(benchmark: Any, shape: str, direction: str, implementation: str) -> None:
    data, n_items, whole = SHAPES[shape]
    offsets, items = offsets_of(LENGTHS[data]), torch.randint(0, n_items, (EVENTS,))
    positions = torch.cat([torch.arange(length) for length in LENGTHS[data]])

    def fastseq(p: float, item: Tensor, *rest: Tensor) -> Tensor:
        return embed_sequence(items, offsets, item, *rest, dropout_p=p, rng=RNG, padding_idx=n_items)

    def eager(p: float, item: Tensor, *rest: Tensor) -> Tensor:
        embedded = F.embedding(items, item, n_items)
        if whole:
            position, weight, bias = rest
            embedded = F.layer_norm(embedded + F.embedding(positions, position), (WIDTH,), weight, bias, 1e-8)
        return F.dropout(embedded, p)

    leaves = [torch.randn(n_items + 1, WIDTH)]
    if whole:
        leaves += [torch.randn(max(LENGTHS[data]), WIDTH), torch.randn(WIDTH), torch.randn(WIDTH)]
    measure(
        benchmark, implementation, {"fastseq": fastseq, "eager": eager}, leaves, torch.randn(EVENTS, WIDTH),
        op="embed_sequence", shape=shape, direction=direction, dropout_p=0.3 if whole else 0.2,
    )  # fmt: skip
