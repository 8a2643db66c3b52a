"""dropout beside torch.nn.functional.dropout, on what Caser's convolutions give. Training only: else it returns x."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastseq.ops import dropout, make_rng

from .case import BATCHES, BOTH, EVENTS, HALF, MANY, Case, Cases


def case(device: torch.device, length: int, rows: int = EVENTS) -> Case:
    rng, width = make_rng(1, 2, device), 4 * 64 + 8 * length  # n_v d + n_h L
    x, upstream = torch.randn(2, rows, width, device=device)
    return Case(
        "dropout", f"[{rows}, {width}]",
        {"fastseq": lambda p, x: dropout(x, p, rng), "eager": lambda p, x: F.dropout(x, p)},
        [x], upstream, dropout_p=0.5, elements=(2 * x.numel(), 2 * x.numel()),
    )  # fmt: skip


SIZES = [(20, EVENTS), (50, EVENTS)]
LARGE = [(20, BATCHES[1]), (50, MANY)]
CASES = [
    Cases("dropout", case, "length rows", SIZES, SIZES + LARGE, tiny=[(3, 7)], dtypes=HALF, directions=[BOTH]),
]
