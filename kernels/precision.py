"""How matrix products of float32 are made: as the user has told PyTorch to make its own."""

from __future__ import annotations

import torch


def float32_precision() -> str:
    """``input_precision`` of tl.dot: "ieee", or "tf32" where torch.set_float32_matmul_precision allows it."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
