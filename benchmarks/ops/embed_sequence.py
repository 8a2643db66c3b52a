"""embed_sequence beside its parts in PyTorch (dense gradients on both sides).

SASRec's embedding has positions, LayerNorm and dropout 0.3; GRU4Rec's is the item and dropout 0.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import embed_sequence, make_rng

from .case import BATCHES, LARGE, WIDTH, Batch, Case, Cases, batch_of

SHAPES = [("SASRec", "ml-1m L=200"), ("SASRec", "beauty L=50"), ("GRU4Rec", "ml-1m L=50")]


def case(device: torch.device, model: str, batch: Batch, n_items: int = 0, width: int = WIDTH) -> Case:
    n_items = n_items or batch.n_items
    whole, rng, offsets = model == "SASRec", make_rng(1, 2, device), batch.offsets(device)
    items = torch.randint(0, n_items, (batch.events,), device=device)
    positions = torch.cat([torch.arange(length) for length in batch.lengths]).to(device)

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
        leaves += [torch.randn(batch.longest, width, device=device), *torch.randn(2, width, device=device)]
    n = batch.events * width
    return Case(
        "embed_sequence", f"{model}, {batch}", {"fastseq": fastseq, "eager": eager}, leaves,
        torch.randn(batch.events, width, device=device), dropout_p=0.3 if whole else 0.2, indices=8 * batch.events,
        elements=(2 * n, (2 if whole else 1) * n + leaves[0].numel()),  # backward: the table's dense gradient
    )  # fmt: skip


SIZES = [(model, batch_of(name, targets)) for targets in BATCHES for model, name in SHAPES]
TINY = [(model, Batch("tiny", [3, 1, 4]), 9, 24) for model in ("SASRec", "GRU4Rec")]
CASES = [
    Cases("embed_sequence", case, "model batch", SIZES[: len(SHAPES)], cuda=[*SIZES, ("SASRec", LARGE)], tiny=TINY),
]
