"""Sizes of launches, on the host. Triton's own cdiv and next_power_of_2 serve kernels too, at 20 times the cost."""

from __future__ import annotations


def cdiv(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


def next_power_of_2(x: int) -> int:
    """The smallest power of two that is at least x; 1 where x is 0."""
    return 1 << max(x - 1, 0).bit_length()
