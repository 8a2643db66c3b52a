"""Dropout on the CPU: csrc/dropout.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import call, compute_type, matrix, seed_and_step


def dropout(x: Tensor, p: float, rng: Tensor | None, site: int) -> Tensor:
    source = matrix(x, compute_type(x.dtype))
    result = torch.empty_like(source)
    call(_C.dropout, source, result, p, *seed_and_step(rng), site)
    return result.view(x.shape).to(x.dtype)
