"""dropout_add_norm beside its parts in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import dropout_add_norm, make_rng

from .case import BATCHES, EVENTS, HALF, MANY, WIDTH, Case, Cases


def case(device: torch.device, rows: int = EVENTS, width: int = WIDTH) -> Case:
    rng = make_rng(1, 2, device)
    x, residual, upstream = torch.randn(3, rows, width, device=device)

    def fastseq(p: float, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor) -> Tensor:
        return dropout_add_norm(x, residual, weight, bias, x_bias=x_bias, dropout_p=p, rng=rng)

    def eager(p: float, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor) -> Tensor:
        return F.layer_norm(residual + F.dropout(x + x_bias, p), weight.shape, weight, bias)

    n = x.numel()
    return Case(
        "dropout_add_norm", f"[{rows}, {width}]", {"fastseq": fastseq, "eager": eager},
        [x, residual, *torch.randn(3, width, device=device)], upstream, dropout_p=0.3,
        elements=(3 * n, 4 * n),  # x, residual, out; upstream, what was normalised, two gradients
    )  # fmt: skip


SIZES = [(rows,) for rows in (*BATCHES, MANY)]
CASES = [Cases("dropout_add_norm", case, "rows", cpu=SIZES[:1], cuda=SIZES, tiny=[(5, 24)], dtypes=HALF)]
