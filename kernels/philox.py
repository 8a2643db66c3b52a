"""The random stream inside a kernel; the layout of its counter is written in fastseq/ops/philox.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rounds(seed, c0, c1, c2, c3):
    """The four words of Philox-4x32-10, as tl.philox has them, but each product is one of 64 bits, not two of 32: a
    tenth fewer instructions of attention on sm_90. With it the embedding's and the negatives' kernels spill 8 bytes."""
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        low, high = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0, c2 = (high >> 32).to(tl.uint32) ^ c1 ^ k0, (low >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = high.to(tl.uint32), low.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _calls(rng, row, block, site, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """The four words of ROWS rows and BLOCKS blocks, uint32 [ROWS, BLOCKS] each; arguments as of ``words``."""
    seed, step = tl.load(rng), tl.load(rng + 1).to(tl.uint32)
    zero = tl.zeros((ROWS, BLOCKS), tl.uint32)
    return tl.philox(seed, zero + block.to(tl.uint32), zero + row.to(tl.uint32), zero + step, zero + site)


@triton.jit
def words(rng, row, block, site, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """The words of ROWS rows and 4 * BLOCKS columns: uint32 [ROWS, 4 * BLOCKS].

    Args:
        rng: pointer to int64 [2], (seed, step).
        row: int [ROWS, 1], counter word c1.
        block: int [1, BLOCKS], counter word c0: column // 4.
        site: int, or [ROWS, 1]: counter word c3.
    """
    w0, w1, w2, w3 = _calls(rng, row, block, site, ROWS, BLOCKS)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def dropped(rng, row, block, site, threshold, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """Which elements of ROWS rows and 8 * BLOCKS columns dropout drops: bool [ROWS, 8 * BLOCKS].

    Args:
        rng, row, site: as of ``words``.
        block: int [1, BLOCKS], counter word c0: column // 8.
        threshold: int, 16 bits.
    """
    w0, w1, w2, w3 = _calls(rng, row, block, site, ROWS, BLOCKS)
    below = tl.cast(threshold, tl.uint32) << 16  # a word is below it where its upper half is below the threshold
    pairs = tl.interleave(w1.to(tl.uint64) << 32 | w0, w3.to(tl.uint64) << 32 | w2)
    even, odd = pairs.to(tl.uint32), (pairs >> 32).to(tl.uint32)
    return tl.interleave(tl.interleave(even << 16, odd << 16), tl.interleave(even, odd)) < below


def adjacent(rng: Tensor | None) -> Tensor | None:
    """``rng`` as ``words`` reads it: the step beside the seed."""
    return None if rng is None else rng.contiguous()
