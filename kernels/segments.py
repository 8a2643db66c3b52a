"""Sums by id: the gradient of an embedding table from the gradients of the rows read from it.

The entries are sorted by id once (stable, by torch.sort) and then every row of the table is written by exactly one
program, in the order of the entries: no atomics, the same bits in every run, and rows without entries are zeroed in
the same pass. Popular items make long segments, so aligned chunks of CHUNK sorted entries that hold one id only are
summed first, by programs of their own; the program of a row then reads their sums instead of their entries and walks
over less than 2 CHUNK entries itself. Gathered rows never reach memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sizes import cdiv, next_power_of_2

# Entries of a chunk: long enough that partial sums are little traffic, short enough for the walk of one program.
CHUNK = 64
# Rows of 128 columns gathered at a time, and the warps that hold them: 16 are 32 registers a thread with 2 warps. Most
# segments are shorter than that, so more would be masked off. Not yet measured.
ENTRIES, WARPS = 16, 2


@triton.jit
def _add_entries(sum, start, stop, order, coefficients, source, per_row, column, width, WEIGHTED: tl.constexpr,
                 ENTRIES: tl.constexpr):  # fmt: skip
    """``sum`` [1, COLUMNS] and the entries start ... stop of the sorted list."""
    for first in range(start, stop, ENTRIES):
        position = first + tl.arange(0, ENTRIES)[:, None]
        inside = position < stop
        entry = tl.load(order + position, mask=inside, other=0)
        rows = tl.load(
            source + (entry // per_row) * width + column, mask=inside & (column < width), other=0.0
        ).to(tl.float32)  # fmt: skip
        if WEIGHTED:
            rows *= tl.load(coefficients + entry, mask=inside, other=0.0).to(tl.float32)
        sum += tl.sum(rows, axis=0)[None, :]
    return sum


@triton.jit
def _sum_chunks(sorted_ids, order, coefficients, source, partial, per_row, width, CHUNK: tl.constexpr,
                WEIGHTED: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    start = chunk * CHUNK
    if tl.load(sorted_ids + start) == tl.load(sorted_ids + start + CHUNK - 1):
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        sum = tl.zeros((1, COLUMNS), tl.float32)
        sum = _add_entries(
            sum, start, start + CHUNK, order, coefficients, source, per_row, column, width, WEIGHTED, ENTRIES
        )
        tl.store(partial + chunk * width + column, sum, mask=column < width)


@triton.jit
def _sum_segments(starts, order, coefficients, source, partial, table, per_row, width, padding_idx,
                  CHUNK: tl.constexpr, WEIGHTED: tl.constexpr, ENTRIES: tl.constexpr,
                  COLUMNS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    start, stop = tl.load(starts + row), tl.load(starts + row + 1)
    stop = tl.where(row == padding_idx, start, stop)
    first_chunk, last_chunk = (start + CHUNK - 1) // CHUNK, stop // CHUNK
    whole = last_chunk > first_chunk
    first_stop = tl.where(whole, first_chunk * CHUNK, stop)
    rest = tl.where(whole, last_chunk * CHUNK, stop)
    last_chunk = tl.where(whole, last_chunk, first_chunk)
    sum = tl.zeros((1, COLUMNS), tl.float32)
    sum = _add_entries(sum, start, first_stop, order, coefficients, source, per_row, column, width, WEIGHTED, ENTRIES)
    for chunk in range(first_chunk, last_chunk, ENTRIES):
        position = chunk + tl.arange(0, ENTRIES)[:, None]
        inside = (position < last_chunk) & (column < width)
        sum += tl.sum(tl.load(partial + position * width + column, mask=inside, other=0.0), axis=0)[None, :]
    sum = _add_entries(sum, rest, stop, order, coefficients, source, per_row, column, width, WEIGHTED, ENTRIES)
    tl.store(table + row * width + column, sum.to(table.dtype.element_ty), mask=column < width)


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
        padding_idx: a row that stays zero, or None.
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
    # Half of the bits, half of the passes of the radix sort.
    sorted_ids, order = ids.reshape(-1).clamp(-1, n_rows).to(torch.int32).sort(stable=True)
    starts = torch.searchsorted(sorted_ids, torch.arange(n_rows + 1, dtype=torch.int32, device=ids.device))
    weights = source if coefficients is None else coefficients.contiguous()
    columns = min(128, next_power_of_2(width))
    per_row, across = max(entries // max(rows, 1), 1), cdiv(width, columns)
    chunks = entries // CHUNK
    partial = torch.empty(chunks, width, dtype=torch.float32, device=source.device)
    shape = {"CHUNK": CHUNK, "WEIGHTED": coefficients is not None, "ENTRIES": ENTRIES, "COLUMNS": columns}
    if chunks:
        _sum_chunks[chunks, across](
            sorted_ids, order, weights, source, partial, per_row, width, **shape, num_warps=WARPS
        )
    _sum_segments[n_rows, across](
        starts, order, weights, source, partial, table, per_row, width, -1 if padding_idx is None else padding_idx,
        **shape, num_warps=WARPS,
    )  # fmt: skip
    return table
