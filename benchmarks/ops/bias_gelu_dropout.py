"""bias_gelu_dropout beside its parts in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastseq.ops import bias_gelu_dropout, make_rng

from .case import BATCHES, EVENTS, HALF, MANY, Case, Cases

INNER = 512


def case(device: torch.device, rows: int = EVENTS, inner: int = INNER) -> Case:
    rng = make_rng(1, 2, device)
    x, upstream = torch.randn(2, rows, inner, device=device)
    return Case(
        "bias_gelu_dropout", f"[{rows}, {inner}]",
        {
            "fastseq": lambda p, x, bias: bias_gelu_dropout(x, bias, dropout_p=p, rng=rng),
            "eager": lambda p, x, bias: F.dropout(F.gelu(x + bias), p),
        },
        [x, torch.randn(inner, device=device)], upstream, dropout_p=0.3,
    )  # fmt: skip


SIZES = [(rows,) for rows in (*BATCHES, MANY)]
CASES = [Cases("bias_gelu_dropout", case, "rows", cpu=SIZES[:1], cuda=SIZES, tiny=[(5, 24)], dtypes=HALF)]
