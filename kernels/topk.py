"""The best unseen items: scores live in registers, a tile at a time, and only better ones are looked at twice.

A program takes a few users and a part of the catalogue and keeps their best SIZE items, sorted. A score and its id are
one integer, ordered by score and then by smaller id, so that one comparison ranks and one sort moves both. A tile whose
scores all lie below the users' k-th best is dropped; else the items seen are removed from it (a binary search in the
user's sorted list) and it is merged: the element-wise maximum of a descending and an ascending list holds the best of
both. There are as many parts as fill the chip, for one user too: a tree of programs merges their lists, and each sorts
what matters of several at once. More than SIZE items take several passes, each of the items ranked after the last. The
order of the tiles does not show in the result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .lists import contains, highest_bit
from .products import float32_precision, kind, operand, product, shared_memory
from .sizes import cdiv, next_power_of_2

# Users of a program (the fewest that tl.dot takes: each has tiles of its own that matter), and the sizes of its lists
# and tiles. Columns of h and weight multiplied at a time, and warps, up to 64 and above: twice the columns or half the
# warps for the longer lists spill up to 0.3 KB, and 4 warps of "ieee" for the shorter ones 48 bytes. Not yet measured.
USERS, SIZES = 16, (64, 128)
LAUNCHES = {"half": ((128, 4), (64, 8)), "tf32": ((32, 4), (32, 8)), "ieee": ((32, 8), (16, 8))}
# Programs that fill a large chip: few users' catalogue is cut into so many parts.
PROGRAMS = 512
# Entries of lists that a program sorts at once to merge them, and its warps: the compiler takes seconds for twice as
# many. Not yet measured.
MERGED, MERGE_WARPS = 512, 4

_ID_BITS = 31
_EMPTY = tl.constexpr(-(2**63))  # below every item


@triton.jit(do_not_specialize=["n_users", "n_entries"])
def _scan(h, weight, bias, seen_offsets, entries, bounds, lists, n_users, n_items, width, part, n_entries, k,
          BIAS: tl.constexpr, SEEN: tl.constexpr, BOUNDED: tl.constexpr, USERS: tl.constexpr, SIZE: tl.constexpr,
          WIDTH: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    first_user = tl.program_id(0) * USERS
    user = first_user + tl.arange(0, USERS)[:, None]
    some_user = user < n_users
    h += first_user.to(tl.int64) * width
    start = tl.program_id(1) * part
    stop = tl.minimum(start + part, n_items)
    slot = tl.arange(0, SIZE)[None, :]
    best = tl.full((USERS, SIZE), _EMPTY, tl.int64)
    if SEEN:
        seen_start = tl.load(seen_offsets + user, mask=some_user, other=0).to(tl.int64)
        seen_stop = tl.load(seen_offsets + user + 1, mask=some_user, other=0).to(tl.int64)
        seen_start = tl.maximum(seen_start, 0)
        seen_size = (tl.minimum(seen_stop, n_entries) - seen_start).to(tl.int32)
        step = highest_bit(tl.max(seen_size))
    if BOUNDED:
        bound = tl.load(bounds + user, mask=some_user, other=_EMPTY)
    for first in range(start, stop, SIZE):
        item = first + slot
        score, _ = product(
            h, weight + tl.cast(first, tl.int64) * width, n_users - first_user, n_items - first, width,
            USERS, SIZE, WIDTH, STEP, PRECISION,
        )  # fmt: skip
        if BIAS:
            score += tl.load(bias + item, mask=item < n_items, other=0.0).to(tl.float32)
        # NaN compares false, and is left out with -inf.
        some = some_user & (item < n_items) & (score > float("-inf"))
        score = tl.where(score == 0.0, 0.0, score)  # -0.0 is no smaller
        bits = score.to(tl.int32, bitcast=True)
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the scores
        key = (bits.to(tl.int64) << 32) | (0x7FFFFFFF - item).to(tl.int64)
        worst = tl.sum(tl.where(slot == k - 1, best, 0), axis=1)[:, None]  # the k-th best so far
        some = some & (key > worst)
        if BOUNDED:
            some = some & (key < bound)
        if tl.max(some.to(tl.int32)) > 0:
            if SEEN:
                wide = item + tl.zeros_like(bits)
                some = some & (contains(entries, seen_start, seen_size, step, wide, some) == 0)
            tile = tl.sort(tl.where(some, key, _EMPTY), descending=False)
            best = tl.sort(tl.maximum(best, tile), descending=True)
    offset = (tl.program_id(1).to(tl.int64) * n_users + user) * SIZE + slot
    tl.store(lists + offset, best, mask=some_user)


@triton.jit(do_not_specialize=["n_users", "parts", "k", "first"])
def _merge(lists, merged, scores, ids, bounds, n_users, parts, k, first, SIZE: tl.constexpr, LISTS: tl.constexpr,
           KEEP: tl.constexpr):  # fmt: skip
    """The best KEEP of a user's lists, of LISTS of them a program: merged, or columns first ... k - 1 of the result."""
    user = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, LISTS * KEEP)
    part = tl.program_id(1) * LISTS + place // KEEP
    entry = (part.to(tl.int64) * n_users + user) * SIZE + place % KEEP
    best = tl.sort(tl.load(lists + entry, mask=part < parts, other=_EMPTY), descending=True)
    if merged is not None:
        tl.store(
            merged + (tl.program_id(1) * tl.cast(n_users, tl.int64) + user) * KEEP + place, best, mask=place < KEEP
        )
    else:
        bits = (best >> 32).to(tl.int32)
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        score = tl.where(best == _EMPTY, float("-inf"), bits.to(tl.float32, bitcast=True))
        item = tl.where(best == _EMPTY, -1, 0x7FFFFFFF - (best & 0x7FFFFFFF))
        inside = (place < KEEP) & (first + place < k)
        offset = user * k + first + place
        tl.store(scores + offset, score.to(scores.dtype.element_ty), mask=inside)
        tl.store(ids + offset, item, mask=inside)
        tl.store(bounds + user + place * 0, best, mask=place == KEEP - 1)


def _sorted_lists(offsets: Tensor, items: Tensor) -> Tensor:
    """The seen items, ascending within each user: int32 [S]. Ids that are none are sorted too, and match nothing."""
    users = torch.searchsorted(offsets, torch.arange(len(items), device=items.device), right=True)
    keys = (users << _ID_BITS) + items.clamp(-1, 2**_ID_BITS - 2) + 1
    return ((keys.sort().values & (2**_ID_BITS - 1)) - 1).to(torch.int32)


def topk(
    h: Tensor,
    weight: Tensor,
    k: int,
    bias: Tensor | None,
    seen_offsets: Tensor | None,
    seen_items: Tensor | None,
    seen_sorted: bool,
    codes: Tensor | None,
    scales: Tensor | None,
) -> tuple[Tensor, Tensor]:
    x, table = operand(h, "h", h.dtype), operand(weight, "weight", h.dtype)
    (n_users, width), n_items = x.shape, table.shape[0]
    scores = torch.empty(n_users, k, dtype=h.dtype, device=h.device)
    ids = torch.empty(n_users, k, dtype=torch.int64, device=h.device)
    if n_users == 0:
        return scores, ids
    seen = seen_offsets is not None and seen_items is not None and len(seen_items) > 0
    starts, entries = x, x
    if seen_offsets is not None and seen_items is not None and seen:
        starts = seen_offsets.to(torch.int64).contiguous()
        entries = seen_items.to(torch.int32) if seen_sorted else _sorted_lists(starts, seen_items)
    size = next((size for size in SIZES if size >= k), SIZES[-1])
    columns = max(16, next_power_of_2(width))
    tiles, steps = cdiv(n_users, USERS), max(1, cdiv(n_items, size))
    part = cdiv(steps, min(steps, cdiv(PROGRAMS, tiles))) * size
    parts = max(1, cdiv(n_items, part))
    lists = torch.empty(parts, n_users, size, dtype=torch.int64, device=h.device)
    bounds = torch.empty(n_users, dtype=torch.int64, device=h.device)
    step, warps = LAUNCHES[kind(x)][size > 64]
    # The next step's columns are fetched ahead, but on AMD's chips, whose 64 KB they would not leave room in.
    stages = 1 if shared_memory(x) <= 64 << 10 else 2
    for first in range(0, k, size):
        _scan[tiles, parts](
            x, table, x if bias is None else bias.contiguous(), starts, entries, bounds, lists, n_users, n_items,
            width, part, entries.shape[0], min(size, k - first), BIAS=bias is not None, SEEN=seen, BOUNDED=first > 0,
            USERS=USERS, SIZE=size, WIDTH=columns, STEP=min(columns, step),
            PRECISION=float32_precision(), num_warps=warps, num_stages=stages,
        )  # fmt: skip
        keep, left, length, given = next_power_of_2(min(size, k - first)), parts, size, lists
        while left > 0:
            each = min(MERGED // keep, max(2, next_power_of_2(left)))
            groups = cdiv(left, each)
            merged = torch.empty(groups, n_users, keep, dtype=torch.int64, device=h.device) if groups > 1 else None
            _merge[n_users, groups](
                given, merged, scores, ids, bounds, n_users, left, k, first, SIZE=length, LISTS=each, KEEP=keep,
                num_warps=MERGE_WARPS,
            )  # fmt: skip
            left, length = (0, 0) if merged is None else (groups, keep)
            given = given if merged is None else merged
    return scores, ids
