"""Searches: in the offsets of a jagged batch, and in sorted jagged lists, one list a row of a tile."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def highest_bit(x):
    """The largest power of two that is at most x (a scalar), 0 for 0: the first step of a search."""
    bit = tl.full((), 1, tl.int32)
    while bit <= x:
        bit = bit * 2
    return bit // 2


@triton.jit
def sequence_of(row, offsets, sequences, steps):
    """The sequence that a row of a jagged batch is in, or each of some rows: 2 ** steps > sequences halvings find the
    last offset not above it."""
    low = tl.zeros(row.shape, tl.int32)
    high = low + sequences
    for _ in range(steps):
        middle = low + (high - low) // 2
        reached = tl.load(offsets + middle) <= row
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle)
    return low


@triton.jit
def count_at_most(entries, start, size, step, value, active, RANK: tl.constexpr):
    """How many entries of its row's list are at most each value; with RANK, of the entries less their index.

    Args:
        entries: pointer to the lists, each ascending.
        start, size: [ROWS, 1], where each row's list starts and its length.
        step: highest_bit of the longest list.
        value: [ROWS, COLUMNS], integers.
        active: bool [ROWS, COLUMNS], where to search; elsewhere nothing is read and the count is 0.
    """
    passed = tl.zeros(value.shape, tl.int32)
    while step > 0:
        reached = passed + step
        inside = active & (reached <= size)
        entry = tl.load(entries + start + reached - 1, mask=inside, other=0)
        if RANK:
            entry -= reached - 1
        passed = tl.where(inside & (entry <= value), reached, passed)
        step = step // 2
    return passed


@triton.jit
def contains(entries, start, size, step, value, active):
    """Whether each value is in its row's list; False where it is not active. Arguments as of count_at_most."""
    passed = count_at_most(entries, start, size, step, value, active, False)
    last = tl.load(entries + start + passed - 1, mask=active & (passed > 0), other=-1)
    return active & (passed > 0) & (last == value)
