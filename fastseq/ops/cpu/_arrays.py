"""Tensors to C++ and back: contiguous buffers of float32 or float64, half types computed in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def compute_type(dtype: torch.dtype) -> torch.dtype:
    """The type C++ computes in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def prepared(x: Tensor, kind: torch.dtype | None = None) -> Tensor:
    """``x`` detached, contiguous and of type ``kind``, by default its compute type; no copy where it already is."""
    return x.detach().to(compute_type(x.dtype) if kind is None else kind).contiguous()


def array(x: Tensor) -> Any:
    """The numpy view of a prepared tensor (shares memory)."""
    return x.detach().numpy()


def seed_and_step(rng: Tensor | None) -> tuple[int, int]:
    """The two integers of ``rng``; (0, 0) where nothing is drawn."""
    return (0, 0) if rng is None else tuple(rng.tolist())
