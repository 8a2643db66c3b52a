"""Operands of kernels and their matrix products: types, how float32 is multiplied, what a chip has room for."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver


@triton.jit
def product(a, b, a_left, b_left, width, A: tl.constexpr, B: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """a bᵀ of A and B rows, of which a_left and b_left exist; and the last STEP columns of b, all if WIDTH is STEP."""
    i, j = tl.arange(0, A)[:, None], tl.arange(0, B)[:, None]
    for first in tl.static_range(0, WIDTH, STEP):
        column = first + tl.arange(0, STEP)[None, :]
        left = tl.load(a + i * width + column, mask=(i < a_left) & (column < width), other=0.0)
        right = tl.load(b + j * width + column, mask=(j < b_left) & (column < width), other=0.0)
        if first == 0:
            sums = tl.dot(left, tl.trans(right), input_precision=PRECISION)
        else:
            sums = tl.dot(left, tl.trans(right), sums, input_precision=PRECISION)
    return sums, right


def float32_precision() -> str:
    """``input_precision`` of tl.dot: "tf32" where PyTorch's own products of float32 on a GPU may use it, else "ieee".

    That is what torch.backends.cuda.matmul.fp32_precision says (PyTorch 2.9), whichever of PyTorch's two ways has set
    it; torch.get_float32_matmul_precision raises once both ways have been used.
    """
    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if precision is None:
        precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return "tf32" if precision == "tf32" else "ieee"


def summed(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """The product a b, as the gradient of a weight of type ``dtype``: of half types in the wider of the types.

    The matrix unit sums in float32 what it multiplies, so nothing is cast for that on a GPU.
    """
    wide = torch.promote_types(a.dtype, dtype)
    if wide == a.dtype:
        return torch.mm(a, b)
    return torch.mm(a, b, out_dtype=wide) if a.is_cuda else torch.mm(a.to(wide), b.to(wide))


def product_into(a: Tensor, b: Tensor, out: Tensor) -> None:
    """The product a b of half types or float32 into ``out``, float32: half types are summed as the matrix unit does."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.is_cuda:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def kind(x: Tensor) -> str:
    """The row of a table of launches that serves the operand x: "half", "tf32" or "ieee"."""
    return float32_precision() if x.dtype == torch.float32 else "half"


def shared_memory(x: Tensor) -> int:
    """Bytes of shared memory that a program may have on the device of ``x``; the interpreter has no limit."""
    return 227 << 10 if x.device.type == "cpu" else _shared_memory(driver.active, x.device.index)


@functools.cache
def _shared_memory(active: Any, device: int) -> int:
    return int(active.utils.get_device_properties(device)["max_shared_mem"])


def refuse_float64(x: Tensor, name: str) -> None:
    """Raises ValueError if x, the argument ``name``, is float64: a float32 result would pass for it."""
    if x.dtype == torch.float64:
        raise ValueError(f"{name} is torch.float64: the Triton kernels compute in float32, float64 is for the CPU")


def operand(x: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """``x`` in ``dtype``, contiguous.

    Raises:
        ValueError: if x, the argument ``name``, is float64.
    """
    refuse_float64(x, name)
    x = x.to(dtype).contiguous()
    if dtype == torch.bfloat16 and x.device.type == "cpu":  # the interpreter multiplies its bits, not its values
        return x.float()
    return x
