"""Negative sampling on the device: the items that csrc/negatives.cpp draws from the same words.

A program draws for a tile of targets and draws. Uniform: the rank of an unseen item becomes the item by one binary
search in the user's list. By an alias table: attempts go on until every element of the tile has an item, at most 31;
what is left then (users who have seen nearly everything that is popular) is drawn by a kernel that walks over the
catalogue, and has nothing to do as a rule.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastseq.ops.negatives import ATTEMPTS, WORDS_PER_NEGATIVE
from fastseq.ops.philox import SITE_NEGATIVES, SITE_SHARED_NEGATIVES
from fastseq.ops.sampled_loss import IGNORED

from . import philox
from .lists import contains, count_at_most, highest_bit
from .sizes import cdiv, next_power_of_2

# Elements of a tile of targets and draws, and warps. The walk over the catalogue: items and draws at a time.
# Bound by searches in lists, so small tiles for many programs. Not yet measured.
TILE, WARPS = 256, 4
WALK_ITEMS, WALK_DRAWS = 256, 16

_BLOCKS = tl.constexpr(WORDS_PER_NEGATIVE // 4)
_LAST = tl.constexpr(ATTEMPTS // 2)  # the block of the last attempt and of the exact draw
_SITE = tl.constexpr(SITE_NEGATIVES)
_PENDING = tl.constexpr(-2)
_IGNORED = tl.constexpr(IGNORED)


@triton.jit
def _scaled(word, n):
    """A number below n (below 2^31) from a word."""
    return (word.to(tl.int64) * n) >> 32


@triton.jit
def _pick(probability, alias, n_items, column, fraction, active):
    item = _scaled(column, n_items)
    own = tl.load(probability + item, mask=active, other=0)
    other = tl.load(alias + item, mask=active, other=0)
    return tl.where(fraction.to(tl.int64) < own, item, other)


@triton.jit
def _list(users, positives, seen_offsets, target, n_targets, n_users, n_items):
    """Of each target: whether it can be served, its positive, its user's list, and what it gets if not served."""
    some = target < n_targets
    user = tl.load(users + target, mask=some, other=0)
    positive = tl.load(positives + target, mask=some, other=0)
    valid = some & (user >= 0) & (user < n_users) & (positive >= 0) & (positive < n_items)
    start = tl.load(seen_offsets + user, mask=valid, other=0)
    size = (tl.load(seen_offsets + user + 1, mask=valid, other=0) - start).to(tl.int32)
    return some, valid, positive, start, size, tl.where(positive == _IGNORED, 0, -1)


# The number of targets differs from batch to batch, and on several ranks that of the first one.
@triton.jit(do_not_specialize=["n_targets", "first"])
def _uniform(users, positives, seen_offsets, seen_items, rng, out, n_targets, n_users, n_items, k, first,
             TARGETS: tl.constexpr, DRAWS: tl.constexpr):  # fmt: skip
    target = tl.program_id(0).to(tl.int64) * TARGETS + tl.arange(0, TARGETS)[:, None]
    draw = tl.program_id(1) * DRAWS + tl.arange(0, DRAWS)[None, :]
    block = tl.program_id(1) * (DRAWS // 4) + tl.arange(0, DRAWS // 4)[None, :]
    some, valid, positive, start, size, otherwise = _list(
        users, positives, seen_offsets, target, n_targets, n_users, n_items
    )
    step = highest_bit(tl.max(size))
    at_most = count_at_most(seen_items, start, size, step, positive, valid, False)
    last = tl.load(seen_items + start + at_most - 1, mask=valid & (at_most > 0), other=-1)
    new = last != positive  # the positive is not among the seen, and is one item less to draw
    left = n_items - size - new.to(tl.int32)
    skip = tl.where(new, positive - at_most, n_items)  # the positive's number among what is not seen
    words = philox.words(rng, first + target, block, _SITE, TARGETS, DRAWS // 4)
    value = _scaled(words, left)
    value += (value >= skip).to(tl.int64)
    active = valid & (left > 0) & (draw < k)
    item = value + count_at_most(seen_items, start, size, step, value, active, True)
    tl.store(out + target * k + draw, tl.where(active, item, otherwise), mask=some & (draw < k))


@triton.jit(do_not_specialize=["n_targets", "first"])
def _weighted(users, positives, seen_offsets, seen_items, rng, probability, alias, out, n_targets, n_users, n_items,
              k, first, TARGETS: tl.constexpr, DRAWS: tl.constexpr):  # fmt: skip
    target = tl.program_id(0).to(tl.int64) * TARGETS + tl.arange(0, TARGETS)[:, None]
    draw = tl.program_id(1) * DRAWS + tl.arange(0, DRAWS)[None, :]
    some, valid, positive, start, size, otherwise = _list(
        users, positives, seen_offsets, target, n_targets, n_users, n_items
    )
    step = highest_bit(tl.max(size))
    seed = tl.load(rng)
    zero = tl.zeros((TARGETS, DRAWS), tl.uint32)
    row = zero + (first + target).to(tl.uint32)
    counter = zero + tl.load(rng + 1).to(tl.uint32)
    pending = valid & (draw < k)
    sampled = tl.where(pending, _PENDING, otherwise).to(tl.int64)
    number = tl.full((), 0, tl.int32)
    while (number <= _LAST) & (tl.max(pending.to(tl.int32)) > 0):
        block = zero + (draw * _BLOCKS + number).to(tl.uint32)
        w0, w1, w2, w3 = tl.philox(seed, block, row, counter, zero + _SITE)
        item = _pick(probability, alias, n_items, w0, w1, pending)
        good = pending & (item != positive)
        good = good & (contains(seen_items, start, size, step, item, good) == 0)
        sampled = tl.where(good, item, sampled)
        pending = pending & (good == 0)
        if number < _LAST:  # the last block has one attempt only
            item = _pick(probability, alias, n_items, w2, w3, pending)
            good = pending & (item != positive)
            good = good & (contains(seen_items, start, size, step, item, good) == 0)
            sampled = tl.where(good, item, sampled)
            pending = pending & (good == 0)
        number += 1
    tl.store(out + target * k + draw, sampled, mask=some & (draw < k))


@triton.jit
def _masses_left(masses, seen_items, start, size, step, positive, item, n_items):
    """The masses of a tile of items, 0 for what is seen or the positive."""
    inside = item < n_items
    listed = contains(seen_items, start, size, step, item, inside)
    mass = tl.load(masses + item, mask=inside, other=0)
    return tl.where(listed | (item == positive), 0, mass)


@triton.jit(do_not_specialize=["k", "first"])
def _complement(users, positives, seen_offsets, seen_items, rng, masses, out, n_items, k, first,
                ITEMS: tl.constexpr, DRAWS: tl.constexpr):  # fmt: skip
    """The exact draw for what rejection has left; one program a target, and most end here."""
    target = tl.program_id(0).to(tl.int64)
    out += target * k
    some = tl.full((), 0, tl.int32)
    for start_draw in range(0, k, DRAWS):
        draw = start_draw + tl.arange(0, DRAWS)
        drawn = tl.load(out + draw, mask=draw < k, other=-1)
        some += tl.sum((drawn == _PENDING).to(tl.int32))
    if some > 0:
        user, positive = tl.load(users + target), tl.load(positives + target)
        start = tl.load(seen_offsets + user)
        size = (tl.load(seen_offsets + user + 1) - start).to(tl.int32)
        step = highest_bit(size)
        total = tl.full((), 0, tl.int64)
        for start_item in range(0, n_items, ITEMS):
            item = start_item + tl.arange(0, ITEMS)
            total += tl.sum(_masses_left(masses, seen_items, start, size, step, positive, item, n_items), axis=0)
        seed, counter = tl.load(rng), tl.load(rng + 1).to(tl.uint32)
        zero = tl.zeros((DRAWS,), tl.uint32)
        for start_draw in range(0, k, DRAWS):
            draw = start_draw + tl.arange(0, DRAWS)
            pending = tl.load(out + draw, mask=draw < k, other=-1) == _PENDING
            block = zero + (draw * _BLOCKS + _LAST).to(tl.uint32)
            _, _, w2, w3 = tl.philox(
                seed, block, zero + (first + target).to(tl.uint32), zero + counter, zero + _SITE
            )  # fmt: skip
            number = (w2.to(tl.uint64) << 32) | w3.to(tl.uint64)
            rank = tl.umulhi(number, tl.zeros((DRAWS,), tl.uint64) + total.to(tl.uint64)).to(tl.int64)
            below = tl.full((), 0, tl.int64)
            sampled = tl.zeros((DRAWS,), tl.int64)
            for start_item in range(0, n_items, ITEMS):
                item = start_item + tl.arange(0, ITEMS)
                mass = _masses_left(masses, seen_items, start, size, step, positive, item, n_items)
                cumulative = below + tl.cumsum(mass, axis=0)
                passed = (cumulative[None, :] <= rank[:, None]) & (item < n_items)[None, :]
                sampled += tl.sum(passed.to(tl.int64), axis=1)
                below += tl.sum(mass, axis=0)
            tl.store(out + draw, tl.where(total > 0, sampled, -1), mask=pending)


@triton.jit
def _shared(rng, probability, alias, out, size, n_items, site, WEIGHTED: tl.constexpr, DRAWS: tl.constexpr):
    draw = tl.program_id(0).to(tl.int64) * DRAWS + tl.arange(0, DRAWS)[None, :]
    if WEIGHTED:
        block = tl.program_id(0).to(tl.int64) * (DRAWS // 2) + tl.arange(0, DRAWS // 2)[None, :]
        seed = tl.load(rng)
        zero = tl.zeros((1, DRAWS // 2), tl.uint32)
        counter = zero + tl.load(rng + 1).to(tl.uint32)
        w0, w1, w2, w3 = tl.philox(seed, zero + block.to(tl.uint32), zero, counter, zero + site)
        for_all = tl.full((1, DRAWS // 2), True, tl.int1)
        even = _pick(probability, alias, n_items, w0, w1, for_all)
        item = tl.interleave(even, _pick(probability, alias, n_items, w2, w3, for_all))
    else:
        block = tl.program_id(0).to(tl.int64) * (DRAWS // 4) + tl.arange(0, DRAWS // 4)[None, :]
        item = _scaled(philox.words(rng, tl.zeros((1, 1), tl.int32), block, site, 1, DRAWS // 4), n_items)
    tl.store(out + draw, item, mask=draw < size)


def sample_negatives(
    users: Tensor, positives: Tensor, seen_offsets: Tensor, seen_items: Tensor, k: int, n_items: int, rng: Tensor,
    probability: Tensor | None, alias: Tensor | None, first: int, threads: int,
) -> Tensor:  # fmt: skip
    n_targets, n_users = users.shape[0], seen_offsets.shape[0] - 1
    out = torch.empty(n_targets, k, dtype=torch.int64, device=users.device)
    if out.numel() == 0:
        return out
    seen = (
        users.contiguous(),
        positives.contiguous(),
        seen_offsets.contiguous(),
        seen_items.contiguous(),
        rng.contiguous(),
    )
    weighted = probability is not None and alias is not None
    tables = (probability.contiguous(), alias.contiguous()) if probability is not None and alias is not None else ()
    kernel = _weighted if weighted else _uniform
    draws = max(1 if weighted else 4, min(TILE, next_power_of_2(k)))  # a Philox call serves four uniform ones
    targets = TILE // draws
    kernel[cdiv(n_targets, targets), cdiv(k, draws)](
        *seen, *tables, out, n_targets, n_users, n_items, k, first, TARGETS=targets, DRAWS=draws, num_warps=WARPS
    )
    if not tables:
        return out
    probability, alias = tables
    masses = probability.index_add(0, alias, 2**32 - probability)  # integers: exact in any order
    _complement[(n_targets,)](*seen, masses, out, n_items, k, first, ITEMS=WALK_ITEMS, DRAWS=WALK_DRAWS,
                              num_warps=1)  # fmt: skip
    return out


def sample_shared_negatives(
    size: int, n_items: int, rng: Tensor, probability: Tensor | None, alias: Tensor | None, threads: int
) -> Tensor:
    out, rng = torch.empty(size, dtype=torch.int64, device=rng.device), rng.contiguous()
    if size == 0:
        return out
    weighted = probability is not None and alias is not None
    _shared[(cdiv(size, TILE),)](
        rng, probability.contiguous() if probability is not None else rng, alias.contiguous() if alias is not None
        else rng, out, size, n_items, SITE_SHARED_NEGATIVES, WEIGHTED=weighted, DRAWS=TILE, num_warps=WARPS,
    )  # fmt: skip
    return out
