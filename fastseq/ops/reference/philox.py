"""Philox-4x32-10 in plain PyTorch; the layout is written in fastseq/ops/philox.py."""

from __future__ import annotations

import torch
from torch import Tensor

from ..philox import keep_scale, threshold

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


def _multiply(a: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 × 32 bit product, in int64 without overflow."""
    low = (a & 0xFFFF) * x  # < 2**48
    high = (a >> 16) * x  # < 2**48
    middle = high + (low >> 16)  # < 2**49
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(rng: Tensor, c0: Tensor, c1: Tensor, c3: Tensor) -> Tensor:
    """The four words of every counter.

    Args:
        rng: int64 [2], (seed, step).
        c0, c1, c3: int64, broadcast together to some shape [...]; values in [0, 2**32).

    Returns:
        int64 [..., 4] with values in [0, 2**32).
    """
    c0, c1, c3 = torch.broadcast_tensors(c0, c1, c3)
    k0, k1 = rng[0] & _LOW, (rng[0] >> 32) & _LOW
    c2 = (rng[1] & _LOW).expand_as(c0)
    for _ in range(10):
        high0, low0 = _multiply(_M0, c0)
        high1, low1 = _multiply(_M1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return torch.stack((c0, c1, c2, c3), dim=-1)


def keep_mask(rows: Tensor, columns: int, p: float, rng: Tensor, site: Tensor | int, first: Tensor | int = 0) -> Tensor:
    """True where an element survives dropout.

    Args:
        rows: int64 [...], the logical row of each row of the mask.
        columns: number of columns, counted from ``first``.
        site: the dropout site (with the head in its upper bits), an integer or int64 broadcastable to ``rows``.
        first: the first column, likewise.

    Returns:
        bool [..., columns].
    """
    site, first = (torch.as_tensor(x, device=rows.device).expand_as(rows).unsqueeze(-1) for x in (site, first))
    blocks = first // 8 + torch.arange((columns + 14) // 8, device=rows.device)
    words = philox(rng, blocks, rows.unsqueeze(-1), site)
    values = torch.stack((words & 0xFFFF, words >> 16), dim=-1)
    place = first % 8 + torch.arange(columns, device=rows.device)
    return values.flatten(-3).gather(-1, place) >= threshold(p)


def apply_dropout(
    x: Tensor, rows: Tensor, p: float, rng: Tensor | None, site: Tensor | int, first: Tensor | int = 0
) -> Tensor:
    """``x [..., C]`` with the elements that its rows' masks drop set to zero and the rest scaled."""
    if p == 0.0:
        return x
    assert rng is not None
    return torch.where(keep_mask(rows, x.shape[-1], p, rng, site, first), x * keep_scale(p), 0.0)
