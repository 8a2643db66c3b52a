"""Calls of C++ on contiguous buffers of float32 or float64 (half types as float32), and matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastseq import _C


def compute_type(dtype: torch.dtype) -> torch.dtype:
    """The type C++ computes in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def prepared(x: Tensor, kind: torch.dtype | None = None) -> Tensor:
    """``x`` detached, contiguous and of type ``kind``, by default its compute type; no copy where it already is."""
    kind = compute_type(x.dtype) if kind is None else kind
    if x.dtype == kind and x.is_contiguous():  # at small sizes the calls are what costs
        return x.detach() if x.requires_grad else x
    return x.detach().to(kind).contiguous()


def matrix(x: Tensor, kind: torch.dtype) -> Tensor:
    """``x [..., C]`` detached, as a contiguous [rows, C] of type ``kind``; no copy where it already is one."""
    if x.dim() == 2 and x.dtype == kind and x.is_contiguous():
        return x.detach() if x.requires_grad else x
    return x.detach().to(kind).reshape(math.prod(x.shape[:-1]), x.shape[-1]).contiguous()  # -1 knows no [T, 0]


def optional(x: Tensor | None, kind: torch.dtype | None = None) -> Tensor | None:
    """``prepared(x, kind)``; None for None."""
    return None if x is None else prepared(x, kind)


def call(kernel: Callable[..., Any], *arguments: Any, threads: int = 0) -> Any:
    """What a function of ``fastseq._C`` returns for these arguments and a number of threads, 0: PyTorch's.

    Tensors are passed as numpy views that share their memory, so they must be prepared.
    """
    views = [(x.detach() if x.requires_grad else x).numpy() if isinstance(x, Tensor) else x for x in arguments]
    return kernel(*views, threads or torch.get_num_threads())


def seed_and_step(rng: Tensor | None) -> tuple[int, int]:
    """The two integers of ``rng``; (0, 0) where nothing is drawn."""
    return (0, 0) if rng is None else tuple(rng.tolist())


def product(
    a: Tensor, b: Tensor, bias: Tensor | None = None, *, bfloat16: bool = False, out: Tensor | None = None
) -> Tensor:
    """a bᵀ + bias for prepared a [N, K] and b [M, K], of any strides, bias [M]; bfloat16: operands rounded to it.

    Source: csrc/linear.cpp, whose bits do not depend on the number of threads.
    """
    out = torch.empty(a.shape[0], b.shape[0], dtype=a.dtype) if out is None else out
    call(_C.product, a.contiguous(), b, optional(bias), out, bfloat16)
    return out


def transposed_product(a: Tensor, b: Tensor, *, bfloat16: bool = False) -> Tensor:
    """aᵀ b for prepared a [T, M] and b [T, N], as a weight has for gradient; bfloat16: operands rounded to it."""
    out = torch.empty(a.shape[1], b.shape[1], dtype=a.dtype)
    call(_C.transposed_product, a, b, out, bfloat16)
    return out
