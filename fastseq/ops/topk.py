"""The best unseen items of each user."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register


def topk(
    h: Tensor,
    weight: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    seen_offsets: Tensor | None = None,
    seen_items: Tensor | None = None,
    seen_sorted: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k items with the highest scores h · weightᵀ + bias that a user has not seen.

    Args:
        h: [B, d], any floating type; float16 and bfloat16 are computed and ranked in float32.
        weight: [V, d], the type of ``h``. A padding row is an item like any other: leave it out (``weight[:-1]``).
        k: at least 1 and below 2^31; may exceed V.
        bias: [V] or None, the type of ``h``. An item with bias −inf is never returned.
        seen_offsets, seen_items: both or neither. User b has seen seen_items[seen_offsets[b] : seen_offsets[b + 1]].
            int32 or int64 [B + 1], and int64 [S] in any order, repeats allowed.
        seen_sorted: promises that each user's list ascends; the Triton kernel then does not sort the lists. Where
            the lists are looked at (below), the promise is too; C++, which needs no order, does not look.

    Returns:
        (scores [B, k] in the type of ``h``, ids int64 [B, k]), best first; among equal scores the smaller id first,
        also where only some of them fit. Where fewer than k items remain: score −inf, id −1. No gradient. Scores are
        held for a bounded number of users at a time, never [B, V].

    Raises:
        ValueError: if k is out of range, a shape or type is not as above, a seen id is not in [0, V), or a score is NaN
            (a diverged model must not pass for a ranking). The last two read data. A seen id raises on the CPU, and on
            a GPU with FASTSEQ_CHECK=1; else it is ignored. A NaN raises, except in the Triton kernel, which leaves it
            out.

    Source: partial selection by a bounded heap (Knuth, TAOCP vol. 3, 5.2.3).
    """
    if not 1 <= k < 2**31:
        raise ValueError(f"k is {k}, expected 1 ... 2**31 - 1")
    if h.dim() != 2 or weight.dim() != 2 or h.shape[1] != weight.shape[1]:
        raise ValueError(f"h is {list(h.shape)} and weight is {list(weight.shape)}, expected [B, d] and [V, d]")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias is {list(bias.shape)}, expected [{weight.shape[0]}]")
    _checks.one_type(h=h, weight=weight, bias=bias)
    if (seen_offsets is None) != (seen_items is None):
        raise ValueError("seen_offsets and seen_items go together: one of them is None")
    if seen_offsets is not None and seen_items is not None:
        if seen_offsets.dtype not in (torch.int32, torch.int64) or seen_offsets.shape != (h.shape[0] + 1,):
            actual = f"{seen_offsets.dtype} {list(seen_offsets.shape)}"
            raise ValueError(f"seen_offsets is {actual}, expected int32 or int64 [{h.shape[0] + 1}]")
        if seen_items.dtype != torch.int64 or seen_items.dim() != 1:
            raise ValueError(f"seen_items is {seen_items.dtype} {list(seen_items.shape)}, expected torch.int64 [S]")
    result: tuple[Tensor, Tensor] = _topk(
        h.detach(), weight.detach(), k, None if bias is None else bias.detach(), seen_offsets, seen_items, seen_sorted
    )
    return result


def _check_data(
    h: Tensor,
    weight: Tensor,
    k: int,
    bias: Tensor | None,
    seen_offsets: Tensor | None,
    seen_items: Tensor | None,
    seen_sorted: bool,
) -> None:
    if seen_offsets is None or seen_items is None:
        return
    check_ends(seen_offsets, seen_items)
    entries, items = seen_items.shape[0], weight.shape[0]
    falls = (seen_offsets.diff() < 0).nonzero()
    if falls.shape[0]:
        i = int(falls[0]) + 1
        problem = f"seen_offsets decreases at index {i}: {int(seen_offsets[i - 1])} then {int(seen_offsets[i])}"
        raise ValueError(f"{problem}, expected ranges of {entries} seen items")
    _checks.in_range("seen_items", seen_items, items, f"0 <= id < {items}")
    if seen_sorted:
        falls = seen_items.diff() < 0
        ends = seen_offsets[1:-1]
        falls[ends[(ends > 0) & (ends < entries)].long() - 1] = False  # from one list to the next
        if falls.any():
            i = int(falls.nonzero()[0]) + 1
            problem = f"seen_items[{i}] is {int(seen_items[i])}, after {int(seen_items[i - 1])}"
            raise ValueError(f"{problem}: expected each list to ascend, or seen_sorted=False")


def check_ends(seen_offsets: Tensor, seen_items: Tensor) -> None:
    """Raises ValueError unless the lists of seen items begin at the first one and end at the last."""
    first, last, entries = int(seen_offsets[0]), int(seen_offsets[-1]), seen_items.shape[0]
    if first != 0 or last != entries:
        raise ValueError(f"seen_offsets starts at {first} and ends at {last}, expected 0 and {entries}")


def _fake(h: Tensor, weight: Tensor, k: int, *_: Any) -> tuple[Tensor, Tensor]:
    return h.new_empty((h.shape[0], k)), h.new_empty((h.shape[0], k), dtype=torch.int64)


_topk = register("topk", fake=_fake, check=_check_data)
