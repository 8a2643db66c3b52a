"""Matrices of rows for the element-wise ops."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def matrix(x: Tensor, kind: torch.dtype) -> Tensor:
    """``x [..., C]`` detached, as a contiguous [rows, C] of type ``kind``; no copy where it already is one."""
    return x.detach().to(kind).reshape(math.prod(x.shape[:-1]), x.shape[-1]).contiguous()  # -1 knows no [T, 0]
