"""dropout(LayerNorm(item + position)) over a jagged batch: forward one gather of each table and one write.

A program holds whole rows in registers and finds their positions by a binary search in the offsets. The backward makes
the rows again and writes their gradients once, in float32; the gradients of the normalisation's vectors are partial
sums on the way, each position's is a sum over the sequences that reach it, and the item table's a sum by id
(kernels/segments.py). Every sum has a fixed order: no atomics.

A row whose id is not in the table, or whose sequence is longer than the position table, comes out as NaN: nothing is
read out of bounds, and nobody waits for the device to be told.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastseq.ops.philox import keep_scale, threshold

from . import philox, rows
from .lists import sequence_of
from .products import refuse_float64
from .rows import normalised_gradient, statistics, sum_rows
from .segments import segment_sum
from .sizes import cdiv

# The gradient of a position: at least so many sequences a program, and at most so many groups of them.
SEQUENCES, GROUPS = 64, 8


@triton.jit
def _embedded(
    items, offsets, item_weight, position_weight, index, column, n_rows, sequences, steps, columns, n_items, longest,
    POSITION: tl.constexpr,
):  # fmt: skip
    """item + position in float32 [ROWS, COLUMNS], zero outside."""
    some = index < n_rows
    item = tl.load(items + index, mask=some, other=0)
    known = some & (item >= 0) & (item < n_items)
    if POSITION:
        row = index.to(tl.int32)  # as offsets are
        position = row - tl.load(offsets + sequence_of(row, offsets, sequences, steps))
        known = known & (position < longest)
    inside = known[:, None] & (column < columns)
    value = tl.load(item_weight + item[:, None] * columns + column, mask=inside, other=0.0).to(tl.float32)
    if POSITION:
        offset = position.to(tl.int64)[:, None] * columns + column
        value += tl.load(position_weight + offset, mask=inside, other=0.0).to(tl.float32)
    return tl.where((some != known)[:, None] & (column < columns), float("nan"), value)


@triton.jit(do_not_specialize=["n_rows", "sequences", "steps", "n_items", "longest", "site"])
def _forward(
    items, offsets, item_weight, position_weight, norm_weight, norm_bias, y, means, rstds, rng,
    n_rows, sequences, steps, columns, n_items, longest, eps, threshold, scale, site,
    POSITION: tl.constexpr, NORM: tl.constexpr, DROPOUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    value = _embedded(
        items, offsets, item_weight, position_weight, index, column, n_rows, sequences, steps, columns, n_items,
        longest, POSITION,
    )  # fmt: skip
    if NORM:
        mean, rstd, centred = statistics(value, column, columns, eps)
        tl.store(means + index, mean, mask=index < n_rows)
        tl.store(rstds + index, rstd, mask=index < n_rows)
        w = tl.load(norm_weight + column, mask=column < columns, other=0.0).to(tl.float32)
        b = tl.load(norm_bias + column, mask=column < columns, other=0.0).to(tl.float32)
        value = centred * rstd[:, None] * w + b
    if DROPOUT:
        block = tl.arange(0, COLUMNS // 8)[None, :]
        dropped = philox.dropped(rng, index[:, None], block, site, threshold, ROWS, COLUMNS // 8)
        value = tl.where(dropped, 0.0, value * scale)
    inside = (index < n_rows)[:, None] & (column < columns)
    tl.store(y + index[:, None] * columns + column, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n_rows", "sequences", "steps", "n_items", "longest", "tiles", "site"])
def _backward(
    grad, items, offsets, item_weight, position_weight, norm_weight, means, rstds, gradient, partial, rng,
    n_rows, sequences, steps, columns, n_items, longest, tiles, threshold, scale, site,
    POSITION: tl.constexpr, NORM: tl.constexpr, DROPOUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of ``tiles`` tiles the gradient of item + position; partial sums [2, programs, columns] of weight and bias."""
    column = tl.arange(0, COLUMNS)[None, :]
    dweight = tl.zeros((ROWS, COLUMNS), tl.float32)
    dbias = tl.zeros((ROWS, COLUMNS), tl.float32)
    for i in range(tiles):
        index = (tl.program_id(0).to(tl.int64) * tiles + i) * ROWS + tl.arange(0, ROWS)
        some = index < n_rows
        inside = some[:, None] & (column < columns)
        offset = index[:, None] * columns + column
        value = tl.load(grad + offset, mask=inside, other=0.0).to(tl.float32)
        if DROPOUT:
            block = tl.arange(0, COLUMNS // 8)[None, :]
            dropped = philox.dropped(rng, index[:, None], block, site, threshold, ROWS, COLUMNS // 8)
            value = tl.where(dropped, 0.0, value * scale)
        if NORM:
            embedded = _embedded(
                items, offsets, item_weight, position_weight, index, column, n_rows, sequences, steps, columns,
                n_items, longest, POSITION,
            )  # fmt: skip
            mean = tl.load(means + index, mask=some, other=0.0)[:, None]
            rstd = tl.load(rstds + index, mask=some, other=0.0)[:, None]
            normal = tl.where(inside, (embedded - mean) * rstd, 0.0)
            dweight += value * normal
            dbias += value
            w = tl.load(norm_weight + column, mask=column < columns, other=0.0).to(tl.float32)
            value = normalised_gradient(value * w, normal, rstd, column, columns)
        tl.store(gradient + offset, value, mask=inside)
    if NORM:
        offset = tl.program_id(0) * columns + column
        tl.store(partial + offset, tl.sum(dweight, axis=0)[None, :], mask=column < columns)
        offset += tl.num_programs(0) * columns
        tl.store(partial + offset, tl.sum(dbias, axis=0)[None, :], mask=column < columns)


@triton.jit(do_not_specialize=["sequences", "per_group", "positions", "count"])
def _sums(
    gradient, offsets, partial, vectors, dweight, dbias, sequences, per_group, positions, count, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SUM_ROWS: tl.constexpr, SUM_COLUMNS: tl.constexpr,
):  # fmt: skip
    """One position: the sum over a group of the sequences that reach it. partial is [groups, positions, columns].
    The programs after the positions add up vectors [2, count, columns], SUM_COLUMNS of them each."""
    if tl.program_id(0) >= positions:
        if tl.program_id(1) == 0:
            parts = (columns + SUM_COLUMNS - 1) // SUM_COLUMNS
            number = tl.program_id(0) - positions
            vector_column = number % parts * SUM_COLUMNS + tl.arange(0, SUM_COLUMNS)
            source = vectors + number // parts * count * columns
            vector = sum_rows(source, count, columns, vector_column, SUM_ROWS, SUM_COLUMNS)
            target = tl.where(number < parts, dweight, dbias) + vector_column
            tl.store(target, vector.to(dweight.dtype.element_ty), mask=vector_column < columns)
        return
    column = tl.arange(0, COLUMNS)[None, :]
    first = tl.program_id(1) * per_group
    stop = tl.minimum(first + per_group, sequences)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for at in range(first, stop, ROWS):
        sequence = at + tl.arange(0, ROWS)
        some = sequence < stop
        row = tl.load(offsets + sequence, mask=some, other=0).to(tl.int64) + tl.program_id(0)
        some = some & (row < tl.load(offsets + sequence + 1, mask=some, other=0))
        offset = row[:, None] * columns + column
        sums += tl.load(gradient + offset, mask=some[:, None] & (column < columns), other=0.0).to(tl.float32)
    offset = (tl.program_id(1).to(tl.int64) * positions + tl.program_id(0)) * columns + column
    sums = tl.sum(sums, axis=0)[None, :].to(partial.dtype.element_ty)
    tl.store(partial + offset, sums, mask=column < columns)


def _maybe(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def embed_sequence(
    items: Tensor, offsets: Tensor, item_weight: Tensor, position_weight: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float, p: float, rng: Tensor | None,
    site: int, padding_idx: int, bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    refuse_float64(item_weight, "item_weight")
    n_rows, columns, sequences = items.shape[0], item_weight.shape[1], offsets.shape[0] - 1
    rng = philox.adjacent(rng)
    kind = torch.bfloat16 if bfloat16 else item_weight.dtype
    y = torch.empty((n_rows, columns), dtype=kind, device=items.device)
    mean = torch.empty(0 if norm_weight is None else n_rows, dtype=torch.float32, device=items.device)
    rstd = torch.empty_like(mean)
    if y.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    height, width, warps = rows.tile(columns)
    _forward[cdiv(n_rows, height),](
        items.contiguous(), offsets.contiguous(), item_weight.contiguous(), _maybe(position_weight),
        _maybe(norm_weight), _maybe(norm_bias), y, mean, rstd, rng, n_rows, sequences, sequences.bit_length(),
        columns, item_weight.shape[0], 0 if position_weight is None else position_weight.shape[0], eps,
        threshold(p), keep_scale(p), site,
        POSITION=position_weight is not None, NORM=norm_weight is not None, DROPOUT=p > 0.0, ROWS=height,
        COLUMNS=width, num_warps=warps,
    )  # fmt: skip
    return y, mean, rstd


def embed_sequence_backward(
    grad: Tensor, items: Tensor, offsets: Tensor, item_weight: Tensor, position_weight: Tensor | None,
    norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float, p: float, rng: Tensor | None, site: int,
    padding_idx: int, bfloat16: bool, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    n_rows, columns, sequences = items.shape[0], item_weight.shape[1], offsets.shape[0] - 1
    rng = philox.adjacent(rng)
    if grad.numel() == 0:
        parts = (position_weight, norm_weight, norm_weight)
        dposition, dweight, dbias = (item_weight.new_empty(0) if x is None else torch.zeros_like(x) for x in parts)
        ditem = torch.zeros_like(item_weight, memory_format=torch.contiguous_format)
        return ditem, dposition, dweight, dbias
    grad, offsets = grad.contiguous(), offsets.contiguous()
    gradient = grad
    dweight, dbias, dposition = (item_weight.new_empty(0) for _ in range(3))
    partial = grad.new_empty((0, 0, columns), dtype=torch.float32)
    if norm_weight is not None or p > 0.0:
        gradient = torch.empty((n_rows, columns), dtype=torch.float32, device=grad.device)
        height, width, warps = rows.tile(columns)
        warps = 16 if width > 1024 else warps  # eight elements a thread of so wide a row spill on sm_90
        count, tiles = rows.programs(n_rows, height)
        partial = grad.new_empty((0 if norm_weight is None else 2, count, columns), dtype=torch.float32)
        _backward[count,](
            grad, items.contiguous(), offsets, item_weight.contiguous(), _maybe(position_weight),
            _maybe(norm_weight), mean.contiguous(), rstd.contiguous(), gradient, partial, rng, n_rows, sequences,
            sequences.bit_length(), columns, item_weight.shape[0],
            0 if position_weight is None else position_weight.shape[0], tiles,
            threshold(p), keep_scale(p), site,
            POSITION=position_weight is not None, NORM=norm_weight is not None, DROPOUT=p > 0.0, ROWS=height,
            COLUMNS=width, num_warps=warps,
        )  # fmt: skip
        if norm_weight is not None and position_weight is None:
            dweight, dbias = rows.add_up(partial, norm_weight, norm_weight)
    if position_weight is not None:
        if norm_weight is not None:
            dweight, dbias = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (norm_weight,) * 2)
        per_group = max(SEQUENCES, cdiv(sequences, GROUPS))
        groups = cdiv(sequences, per_group)
        dtype = position_weight.dtype if groups == 1 else torch.float32
        sums = torch.empty((groups, *position_weight.shape), dtype=dtype, device=grad.device)
        height, width, warps = rows.tile(columns)
        positions, others = position_weight.shape[0], partial.shape[0] * cdiv(columns, rows.SUM_COLUMNS)
        if positions + others > 0:
            _sums[positions + others, groups](
                gradient, offsets, sums, partial, dweight, dbias, sequences, per_group, positions, partial.shape[1],
                columns, ROWS=height, COLUMNS=width, SUM_ROWS=rows.SUM_ROWS, SUM_COLUMNS=rows.SUM_COLUMNS,
                num_warps=warps,
            )  # fmt: skip
        dposition = sums[0] if groups == 1 else sums.sum(0).to(position_weight.dtype)
    padding = None if padding_idx < 0 else padding_idx
    ditem = segment_sum(items, None, gradient, padding, item_weight.shape[0], item_weight.dtype)
    return ditem, dposition, dweight, dbias
