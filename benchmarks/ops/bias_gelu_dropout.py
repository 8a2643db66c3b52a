"""bias_gelu_dropout beside its parts in PyTorch."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import bias_gelu_dropout, make_rng

from .case import BATCHES, EVENTS, FLOAT32, Case, Spec, dtypes_of

INNER = 512


def case(device: torch.device, rows: int = EVENTS, inner: int = INNER) -> Case:
    rng = make_rng(1, 2, device)
    x, upstream = torch.randn(2, rows, inner, device=device)

    def fastseq(p: float, x: Tensor, bias: Tensor) -> Tensor:
        return bias_gelu_dropout(x, bias, dropout_p=p, rng=rng)

    def eager(p: float, x: Tensor, bias: Tensor) -> Tensor:
        return F.dropout(F.gelu(x + bias), p)

    return Case(
        "bias_gelu_dropout", f"[{rows}, {inner}]", {"fastseq": fastseq, "eager": eager},
        [x, torch.randn(inner, device=device)], upstream, dropout_p=0.3,
        elements=(2 * x.numel(), 3 * x.numel()),
    )  # fmt: skip


def suite(device: str) -> list[Spec]:
    if device == "cpu":
        return [Spec("bias_gelu_dropout", case, [FLOAT32])]
    return [Spec("bias_gelu_dropout", partial(case, rows=rows), dtypes_of(False)) for rows in (*BATCHES, 2048 * 200)]


def tiny(device: torch.device) -> list[Case]:
    return [case(device, 5, 24)]
