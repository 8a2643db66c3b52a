"""Matrix products for which BLAS is not the best."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import array


def transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ b for prepared a [T, M] and b [T, N], as a weight has for gradient; bits independent of the threads."""
    out = torch.empty(a.shape[1], b.shape[1], dtype=a.dtype)
    _C.transposed_product(array(a), array(b), array(out), torch.get_num_threads())
    return out
