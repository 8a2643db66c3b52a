"""Plain PyTorch twin of fastseq/ops/dropout.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .philox import apply_dropout


def dropout(x: Tensor, p: float, rng: Tensor | None, site: int) -> Tensor:
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    rows = torch.arange(flat.shape[0], device=x.device)
    return apply_dropout(flat, rows, p, rng, site).view(x.shape).clone()
