"""Operands of kernels and their matrix products: types, how float32 is multiplied, what a chip has room for."""

from __future__ import annotations

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
    """``input_precision`` of tl.dot: "ieee", or "tf32" where torch.set_float32_matmul_precision allows it."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def kind(x: Tensor) -> str:
    """The row of a table of launches that serves the operand x: "half", "tf32" or "ieee"."""
    return float32_precision() if x.dtype == torch.float32 else "half"


def shared_memory(x: Tensor) -> int:
    """Bytes of shared memory that a program may have on the device of ``x``; the interpreter has no limit."""
    if x.device.type == "cpu":
        return 227 << 10
    return int(driver.active.utils.get_device_properties(x.device.index or 0)["max_shared_mem"])


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
