"""linear beside torch.nn.functional.linear, for the products of a SASRec layer. On a GPU the op is PyTorch's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastseq.ops import linear

from .case import AUTOCAST, EVENTS, FLOAT32, Case, Cases

SHAPES = [(128, 384), (128, 512), (512, 128)]  # query, key and value; into and out of the feed-forward layer


def case(device: torch.device, width: int, out: int, rows: int = EVENTS) -> Case:
    leaves = [
        torch.randn(rows, width, device=device),
        torch.randn(out, width, device=device) / width**0.5,
        torch.randn(out, device=device),
    ]
    products = 2 * rows * width * out
    return Case(
        "linear", f"[{rows}, {width}] x [{out}, {width}]",
        {
            "fastseq": lambda p, x, weight, bias: linear(x, weight, bias),
            "eager": lambda p, x, weight, bias: F.linear(x, weight, bias),
        },
        leaves, torch.randn(rows, out, device=device), products=True, flops=(products, 2 * products),
    )  # fmt: skip


CASES = [Cases("linear", case, "width out", cpu=SHAPES, cuda=[], tiny=[(8, 12, 5)], dtypes=(FLOAT32, AUTOCAST))]
