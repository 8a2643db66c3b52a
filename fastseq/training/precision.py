"""What a training step multiplies in."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def products(precision: str | None, device: torch.device) -> AbstractContextManager[None]:
    """Around the forward and the backward of a step: with "tf32" float32 products on a GPU may use TF32 inside, which
    keeps 10 of the operands' 23 bits and adds in float32. Any other precision leaves PyTorch's setting as it is."""
    return _tf32() if precision == "tf32" and device.type == "cuda" else nullcontext()


@contextmanager
def _tf32() -> Iterator[None]:
    # PyTorch has no other carrier than its process-wide setting, since 2.9 under a new name. Setting and restoring one
    # name alone never mixes the two, which PyTorch refuses to read.
    matmul = torch.backends.cuda.matmul
    name, value = ("fp32_precision", "tf32") if hasattr(matmul, "fp32_precision") else ("allow_tf32", True)
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def say_if_fp32(precision: str | None, device: torch.device) -> None:
    """Warns where "tf32" is asked for and there is none."""
    if precision == "tf32" and device.type != "cuda":
        warnings.warn("precision is tf32, which only GPUs have: on the CPU it is fp32", stacklevel=3)
