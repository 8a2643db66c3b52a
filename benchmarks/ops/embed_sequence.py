"""embed_sequence beside its parts in PyTorch (dense gradients on both sides).

SASRec's embedding has positions, LayerNorm and dropout 0.3; GRU4Rec's is the item and dropout 0.2.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import embed_sequence, make_rng

from .case import (
    BATCHES,
    BEAUTY_ITEMS,
    EVENTS,
    FLOAT32,
    LARGE,
    LARGE_ITEMS,
    ML_1M_ITEMS,
    WIDTH,
    Case,
    Spec,
    described,
    dtypes_of,
    lengths_of,
    offsets_of,
)

# batch, items, whether with positions and LayerNorm
SHAPES = {
    "SASRec, ml-1m L=200": ("ml-1m L=200", ML_1M_ITEMS, True),
    "SASRec, beauty L=50": ("beauty L=50", BEAUTY_ITEMS, True),
    "GRU4Rec, ml-1m L=50": ("ml-1m L=50", ML_1M_ITEMS, False),
    f"SASRec, {LARGE}": (LARGE, LARGE_ITEMS, True),
}


def case(device: torch.device, shape: str, targets: int = EVENTS) -> Case:
    batch, n_items, whole = SHAPES[shape]
    return jagged(device, described(shape, targets), lengths_of(batch, targets), n_items, whole)


def jagged(device: torch.device, shape: str, lengths: list[int], n_items: int, whole: bool, width: int = WIDTH) -> Case:
    events, rng = sum(lengths), make_rng(1, 2, device)
    offsets, items = offsets_of(lengths, device), torch.randint(0, n_items, (events,), device=device)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)

    def fastseq(p: float, item: Tensor, *rest: Tensor) -> Tensor:
        return embed_sequence(items, offsets, item, *rest, dropout_p=p, rng=rng, padding_idx=n_items)

    def eager(p: float, item: Tensor, *rest: Tensor) -> Tensor:
        embedded = F.embedding(items, item, n_items)
        if whole:
            position, weight, bias = rest
            embedded = F.layer_norm(embedded + F.embedding(positions, position), (width,), weight, bias, 1e-8)
        return F.dropout(embedded, p)

    leaves = [torch.randn(n_items + 1, width, device=device)]
    if whole:
        leaves += [torch.randn(max(lengths), width, device=device), *torch.randn(2, width, device=device)]
    n = events * width
    return Case(
        "embed_sequence", shape, {"fastseq": fastseq, "eager": eager}, leaves,
        torch.randn(events, width, device=device), dropout_p=0.3 if whole else 0.2, indices=8 * events,
        elements=(2 * n, (2 if whole else 1) * n + leaves[0].numel()),  # backward: the table's dense gradient
    )  # fmt: skip


def suite(device: str) -> list[Spec]:
    if device == "cpu":
        return [Spec("embed_sequence", partial(case, shape=shape), [FLOAT32]) for shape in list(SHAPES)[:3]]
    shapes = [(shape, targets) for targets in BATCHES for shape in list(SHAPES)[:3]] + [(f"SASRec, {LARGE}", EVENTS)]
    return [Spec("embed_sequence", partial(case, shape=s, targets=n), dtypes_of(False)) for s, n in shapes]


def tiny(device: torch.device) -> list[Case]:
    return [jagged(device, "positions", [3, 1, 4], 9, True, 24), jagged(device, "items", [3, 1, 4], 9, False, 24)]
