"""dropout beside torch.nn.functional.dropout, on what Caser's convolutions give. Training only: else it returns x."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastseq.ops import dropout, make_rng

from .case import BATCHES, BFLOAT16, BOTH, EVENTS, FLOAT32, MANY, Case, Spec, dtypes_of, specs


def case(device: torch.device, length: int, rows: int = EVENTS) -> Case:
    rng, width = make_rng(1, 2, device), 4 * 64 + 8 * length  # n_v d + n_h L
    x, upstream = torch.randn(2, rows, width, device=device)
    return Case(
        "dropout", f"[{rows}, {width}]",
        {"fastseq": lambda p, x: dropout(x, p, rng), "eager": lambda p, x: F.dropout(x, p)},
        [x], upstream, dropout_p=0.5, elements=(2 * x.numel(), 2 * x.numel()),
    )  # fmt: skip


def suite(device: str) -> list[Spec]:
    sizes = [(20, EVENTS), (50, EVENTS)] + ([] if device == "cpu" else [(20, BATCHES[1]), (50, MANY)])
    return specs("dropout", case, "length rows", sizes, dtypes_of(device, cpu=(FLOAT32, BFLOAT16)), [BOTH])


def tiny(device: torch.device) -> list[Case]:
    return [case(device, 3, 7)]
