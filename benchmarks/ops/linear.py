"""linear beside torch.nn.functional.linear, for the products of a SASRec layer. On a GPU the op is PyTorch's own."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import linear

from .case import EVENTS, FLOAT32, Case, Spec

SHAPES = {"query, key, value": (128, 384), "feed-forward in": (128, 512), "feed-forward out": (512, 128)}


def case(device: torch.device, width: int, out: int, rows: int = EVENTS) -> Case:
    def fastseq(p: float, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear(x, weight, bias)

    def eager(p: float, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    leaves = [
        torch.randn(rows, width, device=device),
        torch.randn(out, width, device=device) / width**0.5,
        torch.randn(out, device=device),
    ]
    forward, products = rows * (width + out) + width * out, 2 * rows * width * out
    return Case(
        "linear", f"[{rows}, {width}] x [{out}, {width}]", {"fastseq": fastseq, "eager": eager}, leaves,
        torch.randn(rows, out, device=device), products=True, flops=(products, 2 * products),
        elements=(forward, forward + rows * width + width * out),
    )  # fmt: skip


def suite(device: str) -> list[Spec]:
    if device != "cpu":
        return []  # nothing of ours to measure: cuBLAS on both sides
    return [Spec("linear", partial(case, width=width, out=out), [FLOAT32]) for width, out in SHAPES.values()]


def tiny(device: torch.device) -> list[Case]:
    return [] if device.type != "cpu" else [case(device, 8, 12, 5)]
