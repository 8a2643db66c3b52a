"""Matrix products: csrc/linear.cpp, whose bits do not depend on the number of threads."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import array


def product(
    a: Tensor, b: Tensor, bias: Tensor | None = None, *, bfloat16: bool = False, out: Tensor | None = None
) -> Tensor:
    """a bᵀ + bias for prepared a [N, K] and b [M, K], of any strides, bias [M]; bfloat16: operands rounded to it."""
    out = torch.empty(a.shape[0], b.shape[0], dtype=a.dtype) if out is None else out
    shift = None if bias is None else array(bias.contiguous())
    _C.product(array(a.contiguous()), array(b), shift, array(out), bfloat16, torch.get_num_threads())
    return out


def transposed_product(a: Tensor, b: Tensor, *, bfloat16: bool = False) -> Tensor:
    """aᵀ b for prepared a [T, M] and b [T, N], as a weight has for gradient; bfloat16: operands rounded to it."""
    out = torch.empty(a.shape[1], b.shape[1], dtype=a.dtype)
    _C.transposed_product(array(a), array(b), array(out), bfloat16, torch.get_num_threads())
    return out
