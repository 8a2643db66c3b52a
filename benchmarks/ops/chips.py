"""What chips can do, from their makers' data sheets: limits, bandwidth, rates. The roof is arithmetic on these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """A chip's limits, from its maker's data sheet (dense rates, the largest model of the family)."""

    chip: str
    backend: str
    number: Any
    warp: int
    shared_limit: int  # bytes a block may have
    bandwidth: float  # bytes a second
    rates: dict[str | None, float]  # FLOPs a second, by how products are formed

    def roof(self, moved: float, flops: float, products: str | None = None) -> tuple[float, str]:
        """(seconds, "memory" or "compute"): the time below which nothing can be, and what binds it.

        Args:
            moved: bytes that must be read and written.
            flops: additions and multiplications that the result needs.
            products: how they are formed: "tf32", "bf16", "fp16" (matrix units), or None.
        """
        memory, compute = moved / self.bandwidth, flops / self.rates[products]
        return max(memory, compute), "memory" if memory >= compute else "compute"


ARCHITECTURES = {
    "sm_80": Architecture(
        "A100", "cuda", 80, 32, 163 << 10, 2.04e12, {None: 19.5e12, "tf32": 156e12, "bf16": 312e12, "fp16": 312e12}
    ),
    "sm_90": Architecture(
        "H100", "cuda", 90, 32, 227 << 10, 3.35e12, {None: 67e12, "tf32": 494e12, "bf16": 989e12, "fp16": 989e12}
    ),
    "sm_100": Architecture(
        "B200", "cuda", 100, 32, 227 << 10, 8.0e12, {None: 75e12, "tf32": 1.1e15, "bf16": 2.25e15, "fp16": 2.25e15}
    ),
    "gfx942": Architecture(
        "MI300X", "hip", "gfx942", 64, 64 << 10, 5.3e12, {None: 163e12, "tf32": 654e12, "bf16": 1.3e15, "fp16": 1.3e15}
    ),
}

# By what the driver calls the device. A sibling with other memory or clocks (PCIe, NVL) is not listed: it would be held
# against a roof that is not its own.
_DEVICES = {
    "A100-SXM4-80GB": ARCHITECTURES["sm_80"],
    "H100 80GB HBM3": ARCHITECTURES["sm_90"],
    "H200": replace(ARCHITECTURES["sm_90"], chip="H200", bandwidth=4.8e12),
    "B200": ARCHITECTURES["sm_100"],
    "MI300X": ARCHITECTURES["gfx942"],
}


def chip_of(device_name: str) -> Architecture | None:
    """The chip that a driver calls ``device_name``; None if its figures are not listed here."""
    return next((chip for name, chip in _DEVICES.items() if f" {name} " in f" {device_name} "), None)
