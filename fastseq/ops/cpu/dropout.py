"""Dropout on the CPU: csrc/dropout.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import array, compute_type, matrix, seed_and_step


def dropout(x: Tensor, p: float, rng: Tensor | None, site: int) -> Tensor:
    source = matrix(x, compute_type(x.dtype))
    result = torch.empty_like(source)
    _C.dropout(array(source), array(result), p, *seed_and_step(rng), site, torch.get_num_threads())
    return result.view(x.shape).to(x.dtype)
