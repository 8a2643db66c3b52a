"""The best unseen items of each user."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register

FEW_USERS = 8  # whom codes serve (kFewUsers in csrc/topk.cpp): reading the items is what binds them
_ROWS_AT_ONCE = 1 << 15  # coded at a time


def topk(
    h: Tensor,
    weight: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    seen_offsets: Tensor | None = None,
    seen_items: Tensor | None = None,
    seen_sorted: bool = False,
    codes: tuple[Tensor, Tensor] | None = None,
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
        codes: what ``item_codes`` gives for this ``weight``, float32. They change no bit of the result and are only
            read in C++, for up to ``FEW_USERS`` users, in place of most of ``weight``: a quarter of the bytes.
            Codes of other weights make the result wrong.

    Returns:
        (scores [B, k] in the type of ``h``, ids int64 [B, k]), best first; among equal scores the smaller id first,
        also where only some of them fit. Where fewer than k items remain: score −inf, id −1. No gradient. Scores are
        compared as they are made, and never stored as [B, V].

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
    integers, scales = (None, None) if codes is None else codes
    if integers is not None and scales is not None:
        expected = (weight.shape[0], _padded(weight.shape[1]))
        if weight.dtype != torch.float32 or integers.shape != expected or scales.shape != expected[:1]:
            raise ValueError(
                f"codes are {list(integers.shape)} and {list(scales.shape)} for a weight {weight.dtype} "
                f"{list(weight.shape)}, expected what item_codes gives for it"
            )
    shift = None if bias is None else bias.detach()
    result: tuple[Tensor, Tensor] = _topk(
        h.detach(), weight.detach(), k, shift, seen_offsets, seen_items, seen_sorted, integers, scales
    )
    return result


@torch.no_grad()
def item_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of ``weight`` as 8-bit integers and a scale, from which ``topk`` bounds a score before it is computed.

    Args:
        weight: float32 [V, d].

    Returns:
        codes int8 [V, d, rounded up to a multiple of 32] and scales float32 [V]: a row lies within half a scale of
        scale · codes, element by element. The scale is NaN, and the row always read, where its largest magnitude is
        below 2^-40 or above 2^60, or not finite. A row of zeros has scale 0.

    Raises:
        ValueError: if ``weight`` is not float32 [V, d].
    """
    if weight.dtype != torch.float32 or weight.dim() != 2:
        raise ValueError(f"weight is {weight.dtype} {list(weight.shape)}, expected torch.float32 [V, d]")
    n_items, width = weight.shape
    codes = weight.new_zeros((n_items, _padded(width)), dtype=torch.int8)
    scales = weight.new_zeros(n_items)
    for first in range(0, n_items if width else 0, _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        rows = weight[part]
        most = rows.abs().amax(1)
        coded = (most >= 2.0**-40) & (most <= 2.0**60)  # not NaN
        scales[part] = torch.where(coded, most / 127, torch.where(most == 0, 0.0, float("nan")))
        steps = (rows / scales[part, None]).round_().clamp_(-127, 127)
        codes[part, :width] = steps.masked_fill_(~coded[:, None], 0.0)
    return codes, scales


def _padded(width: int) -> int:
    return -(-width // 32) * 32


def _check_data(
    h: Tensor,
    weight: Tensor,
    k: int,
    bias: Tensor | None,
    seen_offsets: Tensor | None,
    seen_items: Tensor | None,
    seen_sorted: bool,
    codes: Tensor | None,
    scales: Tensor | None,
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
