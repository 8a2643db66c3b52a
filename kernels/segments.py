"""Sums by id: the gradient of an embedding table from the gradients of the rows read from it.

The entries are sorted by id once (stable) and then every row of the table that has some is written by exactly one
program, in the order of the entries: no atomics, the same bits in every run. A program is launched for every entry, and
those that are not the first of their id end at once: a batch reads a few thousand rows, a table may have millions. The
others are filled before, in the launch that sorts.

Up to ``RANKED`` entries an entry's place is counted, by comparing it with all others: one launch, where a radix sort is
six or more. Above that torch.sort is used, and popular items make long segments, so aligned chunks of CHUNK sorted
entries that hold one id only are summed first, by programs of their own; the program of a row then reads their sums
instead of their entries and walks over less than 2 CHUNK entries itself. Gathered rows never reach memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sizes import cdiv, next_power_of_2

# Entries of a chunk: long enough that partial sums are little traffic, short enough for the walk of one program.
CHUNK = 64
# Rows of 128 columns gathered at a time: FEW at first, as most ids of a batch have no more, then ENTRIES, of which one
# warp holds 64 values a thread. Not yet measured.
FEW, ENTRIES, WARPS = 4, 16, 1
# Most entries whose places are counted: 2^28 comparisons are some 26 µs of integer instructions on 132 multiprocessors.
# Not yet measured.
RANKED = 1 << 14
# Entries that a program counts the places of, and those that it compares at a time: 16 pairs a thread with 4 warps.
# Values of the table that it fills at a time.
PLACES, OTHERS, FILL = 32, 64, 2048
FILLING = 512  # programs that fill a table, at least, if it is as large


@triton.jit
def _keys(ids, others, index, entries, n_keys, KIND: tl.constexpr):
    """What entries are sorted by, int32 from 0: "ids", those that are no row as n_keys; "sums" of ids and others,
    likewise; the "lengths" of the sequences that begin at offsets ids, the longest first."""
    inside = index < entries
    key = tl.load(ids + index, mask=inside, other=0).to(tl.int64)
    if KIND == "lengths":
        key = tl.load(ids + index + 1, mask=inside, other=0) - key
        n_keys = 0x7FFFFFFE
    if KIND == "sums":
        key += tl.load(others + index, mask=inside, other=0)
    # Without a sign what is negative is no row either.
    key = tl.minimum(key.to(tl.uint64), tl.cast(n_keys, tl.uint64)).to(tl.int32)
    return n_keys - key if KIND == "lengths" else key


@triton.jit(do_not_specialize=["entries", "n_keys", "size"])
def _place(ids, others, sorted_keys, order, table, entries, n_keys, size, KIND: tl.constexpr,
           PLACES: tl.constexpr, OTHERS: tl.constexpr, FILL: tl.constexpr):  # fmt: skip
    """Puts entries in their places; and fills the ``size`` values of the table with zeros."""
    if tl.program_id(0) * PLACES < entries:
        index = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
        key = _keys(ids, others, index, entries, n_keys, KIND)
        own = tl.program_id(0) * PLACES // OTHERS * OTHERS  # where the entries begin among which this program's are
        before = tl.zeros((PLACES, OTHERS), tl.int32)
        for first in range(0, entries, OTHERS):
            other = first + tl.arange(0, OTHERS)
            theirs = tl.where(other < entries, _keys(ids, others, other, entries, n_keys, KIND), 0x7FFFFFFF)
            # Of equal entries those that come earlier: all of a block before its own, none of one after it.
            theirs -= (first < own).to(tl.int32)
            # The sign bit of the difference, which does not overflow: two instructions a pair, where a comparison's
            # result, added, is four.
            before += ((theirs[None, :] - key[:, None]).to(tl.uint32, bitcast=True) >> 31).to(tl.int32)
        other = own + tl.arange(0, OTHERS)
        theirs = _keys(ids, others, other, entries, n_keys, KIND)
        before += ((theirs[None, :] == key[:, None]) & (other[None, :] < index[:, None])).to(tl.int32)
        place = tl.sum(before, axis=1)
        tl.store(order + place, index, mask=index < entries)
        if sorted_keys is not None:
            tl.store(sorted_keys + place, key, mask=index < entries)
    if table is not None:
        step = tl.num_programs(0).to(tl.int64) * FILL
        for first in range(tl.program_id(0).to(tl.int64) * FILL, size, step):
            offset = first + tl.arange(0, FILL)
            tl.store(table + offset, tl.zeros((FILL,), table.dtype.element_ty), mask=offset < size)


@triton.jit
def _add_some(sum, position, stop, id, sorted_ids, order, coefficients, source, column, width,
              PER_ROW: tl.constexpr, WEIGHTED: tl.constexpr, ENTRIES: tl.constexpr):  # fmt: skip
    """``sum`` [1, COLUMNS] and those of ``ENTRIES`` entries from ``position`` on that are of ``id`` and before
    ``stop``; how many they are."""
    number = position + tl.arange(0, ENTRIES)[:, None]
    same = (number < stop) & (tl.load(sorted_ids + number, mask=number < stop, other=-1) == id)
    entry = tl.load(order + number, mask=same, other=0)
    rows = tl.load(
        source + (entry // PER_ROW).to(tl.int64) * width + column, mask=same & (column < width), other=0.0
    ).to(tl.float32)  # fmt: skip
    if WEIGHTED:
        rows *= tl.load(coefficients + entry, mask=same, other=0.0).to(tl.float32)
    return sum + tl.sum(rows, axis=0)[None, :], tl.sum(same.to(tl.int32))


@triton.jit
def _add_entries(sum, position, stop, id, sorted_ids, order, coefficients, source, column, width,
                 PER_ROW: tl.constexpr, WEIGHTED: tl.constexpr, FEW: tl.constexpr, ENTRIES: tl.constexpr):  # fmt: skip
    """``sum`` [1, COLUMNS] and the entries of ``id`` from ``position`` on and before ``stop``; where they end."""
    sum, found = _add_some(
        sum, position, stop, id, sorted_ids, order, coefficients, source, column, width, PER_ROW, WEIGHTED, FEW
    )
    position += found
    more = found == FEW
    while more:
        sum, found = _add_some(
            sum, position, stop, id, sorted_ids, order, coefficients, source, column, width, PER_ROW, WEIGHTED, ENTRIES
        )
        position += found
        more = found == ENTRIES
    return sum, position


@triton.jit(do_not_specialize=["entries"])
def _sum_chunks(sorted_ids, order, coefficients, source, partial, entries, width, CHUNK: tl.constexpr,
                PER_ROW: tl.constexpr, WEIGHTED: tl.constexpr, FEW: tl.constexpr, ENTRIES: tl.constexpr,
                COLUMNS: tl.constexpr):  # fmt: skip
    chunk = tl.program_id(0)
    start = chunk * CHUNK
    id = tl.load(sorted_ids + start)
    if id == tl.load(sorted_ids + start + CHUNK - 1):
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        sum = tl.zeros((1, COLUMNS), tl.float32)
        sum, _ = _add_entries(
            sum, start, start + CHUNK, id, sorted_ids, order, coefficients, source, column, width,
            PER_ROW, WEIGHTED, FEW, ENTRIES,
        )  # fmt: skip
        tl.store(partial + chunk.to(tl.int64) * width + column, sum, mask=column < width)


@triton.jit(do_not_specialize=["entries", "n_rows", "padding_idx"])
def _sum_segments(sorted_ids, order, coefficients, source, partial, table, entries, width, n_rows,
                  padding_idx, CHUNK: tl.constexpr, PER_ROW: tl.constexpr, WEIGHTED: tl.constexpr,
                  FEW: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """The row of entry program_id(0), if it is the first of its id."""
    first = tl.program_id(0)
    id = tl.load(sorted_ids + first)
    previous = tl.load(sorted_ids + first - 1, mask=first > 0, other=-1)
    if (id != previous) & (id < n_rows) & (id != padding_idx):
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        offset = id.to(tl.int64) * width + column
        sum = tl.zeros((1, COLUMNS), tl.float32)
        stop = entries
        if partial is not None:
            stop = tl.minimum((first + CHUNK - 1) // CHUNK * CHUNK, entries)
        sum, position = _add_entries(
            sum,
            first,
            stop,
            id,
            sorted_ids,
            order,
            coefficients,
            source,
            column,
            width,
            PER_ROW,
            WEIGHTED,
            FEW,
            ENTRIES,
        )
        if partial is not None:
            more = position == stop
            while more:
                chunk = position // CHUNK + tl.arange(0, ENTRIES)[:, None]
                last = chunk * CHUNK + CHUNK - 1
                same = tl.load(sorted_ids + last, mask=last < entries, other=-1) == id
                address = partial + chunk.to(tl.int64) * width + column
                sum += tl.sum(tl.load(address, mask=same & (column < width), other=0.0), axis=0)[None, :]
                found = tl.sum(same.to(tl.int32))
                position += found * CHUNK
                more = found == ENTRIES
            sum, _ = _add_entries(
                sum, position, entries, id, sorted_ids, order, coefficients, source, column, width,
                PER_ROW, WEIGHTED, FEW, ENTRIES,
            )  # fmt: skip
        tl.store(table + offset, sum.to(table.dtype.element_ty), mask=column < width)


def _placed(kind: str, ids: Tensor, others: Tensor | None, sorted_keys: Tensor | None, order: Tensor, n_keys: int = 0,
            table: Tensor | None = None) -> None:  # fmt: skip
    entries = order.shape[0]
    # Few entries fill a large table too slowly alone; the programs beyond them place none.
    filling = 0 if table is None else min(cdiv(table.numel(), FILL), FILLING)
    _place[(max(cdiv(entries, PLACES), filling),)](
        ids.contiguous(), others, sorted_keys, order, table, entries, n_keys,
        0 if table is None else table.numel(), KIND=kind, PLACES=PLACES, OTHERS=OTHERS, FILL=FILL,
    )  # fmt: skip


def sort_ids(
    ids: Tensor, n_ids: int, others: Tensor | None = None, table: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sorts integers ``ids`` [N], or their sums with ``others`` [N], stable; those outside 0 ... n_ids - 1 come last,
    as n_ids, which is below 2^31.

    Fills ``table`` besides, which is contiguous, with zeros.

    Returns:
        int32 [N] what is sorted, and [N] which entry each of them is: int32 if places were counted, else int64.
    """
    entries = ids.shape[0]
    if 0 < entries <= RANKED:
        # Apart: the second half of one tensor is aligned by chance, and kernels are compiled for either alignment.
        sorted_keys, order = (torch.empty(entries, dtype=torch.int32, device=ids.device) for _ in range(2))
        others = None if others is None else others.contiguous()
        _placed("ids" if others is None else "sums", ids, others, sorted_keys, order, n_ids, table)
        return sorted_keys, order
    if table is not None:
        table.zero_()
    keys = ids if others is None else ids + others
    return keys.masked_fill((keys < 0) | (keys >= n_ids), n_ids).to(torch.int32).sort(stable=True)


def longest_first(offsets: Tensor) -> Tensor:
    """The sequences between ``offsets`` [B + 1] by length, longest first and stable: [B]."""
    sequences = offsets.shape[0] - 1
    if not 0 < sequences <= RANKED:
        return torch.argsort(offsets.diff(), descending=True, stable=True)
    order = torch.empty(sequences, dtype=torch.int32, device=offsets.device)
    _placed("lengths", offsets, None, None, order)
    return order


def segment_sum(
    ids: Tensor,
    coefficients: Tensor | None,
    source: Tensor,
    padding_idx: int | None,
    n_rows: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``table[ids[i, j]] += coefficients[i, j] * source[i]``, summed in float32 in the order of (i, j).

    Args:
        ids: integers [N, M], or [N] (M = 1). An id outside 0 ... n_rows - 1 is left out.
        coefficients: [N, M] or None: all 1.
        source: [N, d], any floating type.
        padding_idx: a row to which nothing is added, or None.
        n_rows: rows of the table, below 2^31.
        dtype: of the result.

    Returns:
        [n_rows, d], all of it written; the same bits in every run.
    """
    rows, width = source.shape
    entries = ids.numel()
    table = torch.empty(n_rows, width, dtype=dtype, device=source.device)
    if table.numel() == 0:
        return table
    source = source.contiguous()
    sorted_ids, order = sort_ids(ids.reshape(-1), n_rows, table=table)
    if entries == 0:
        return table
    weights = source if coefficients is None else coefficients.contiguous()
    columns = min(128, next_power_of_2(width))
    across = cdiv(width, columns)
    shape = {"CHUNK": CHUNK, "PER_ROW": max(entries // max(rows, 1), 1), "WEIGHTED": coefficients is not None,
             "FEW": FEW, "ENTRIES": ENTRIES, "COLUMNS": columns}  # fmt: skip
    partial = None
    if entries > RANKED:
        partial = torch.empty(entries // CHUNK, width, dtype=torch.float32, device=source.device)
        _sum_chunks[partial.shape[0], across](
            sorted_ids, order, weights, source, partial, entries, width, **shape, num_warps=WARPS
        )
    _sum_segments[entries, across](
        sorted_ids, order, weights, source, partial, table, entries, width, n_rows,
        -1 if padding_idx is None else padding_idx, **shape, num_warps=WARPS,
    )  # fmt: skip
    return table
