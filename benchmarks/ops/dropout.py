"""dropout beside torch.nn.functional.dropout, on what Caser's convolutions give. Training only: else it returns x."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import dropout, make_rng

from .case import BATCHES, BOTH, EVENTS, FLOAT32, Case, Spec, dtypes_of


def case(device: torch.device, length: int, rows: int = EVENTS) -> Case:
    width = 4 * 64 + 8 * length  # n_v d + n_h L
    rng = make_rng(1, 2, device)
    x, upstream = torch.randn(2, rows, width, device=device)

    def fastseq(p: float, x: Tensor) -> Tensor:
        return dropout(x, p, rng)

    def eager(p: float, x: Tensor) -> Tensor:
        return F.dropout(x, p)

    return Case(
        "dropout", f"[{rows}, {width}]", {"fastseq": fastseq, "eager": eager}, [x], upstream, dropout_p=0.5,
        elements=(2 * x.numel(), 2 * x.numel()),
    )  # fmt: skip


def suite(device: str) -> list[Spec]:
    if device == "cpu":
        return [Spec("dropout", partial(case, length=20), [FLOAT32], [BOTH])]
    shapes = [(20, BATCHES[0]), (20, BATCHES[1]), (50, BATCHES[0]), (50, 2048 * 200)]
    return [Spec("dropout", partial(case, length=n, rows=rows), dtypes_of(False), [BOTH]) for n, rows in shapes]


def tiny(device: torch.device) -> list[Case]:
    return [case(device, 3, 7)]
