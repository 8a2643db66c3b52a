"""Softmax cross-entropy over the catalogue on the CPU: BLAS for the products, csrc/cross_entropy.cpp between them.

Logits exist one tile at a time: TILE_ROWS rows by TILE_COLUMNS classes, and more rows where there are few classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import array, compute_type, prepared
from ._rows import matrix

TILE_ROWS, TILE_COLUMNS = 256, 4096  # 4 MB of float32, between two levels of cache


def _tiles(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and columns that cover [rows, columns], at most TILE_ROWS * TILE_COLUMNS elements each."""
    width = max(1, min(columns, TILE_COLUMNS))
    height = TILE_ROWS * TILE_COLUMNS // width
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))


class _Logits:
    """The tiles of ``h weightᵀ + bias``, one after the other in the same buffer."""

    def __init__(self, h: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> None:
        self.h, self.weight, self.bias, self.softcap = h, weight, bias, softcap
        largest = max((_size(*tile) for tile in self.tiles()), default=0)
        self.buffer = torch.empty(largest, dtype=h.dtype)

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        return _tiles(self.h.shape[0], self.weight.shape[0])

    def compute(self, rows: slice, columns: slice) -> Tensor:
        """The logits of a tile, [rows, columns]; valid until the next call."""
        h, table = self.h[rows], self.weight[columns].t()
        out = self.buffer[: _size(rows, columns)].view(h.shape[0], table.shape[1])
        if self.bias is None:
            torch.mm(h, table, out=out)
        else:
            torch.addmm(self.bias[columns], h, table, out=out)
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out


def _size(rows: slice, columns: slice) -> int:
    return (rows.stop - rows.start) * (columns.stop - columns.start)


def linear_cross_entropy(
    h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, softcap: float | None
) -> tuple[Tensor, Tensor]:
    kind, threads = compute_type(h.dtype), torch.get_num_threads()
    targets = targets.contiguous()
    _C.check_targets(array(targets), weight.shape[0], ignore_index)
    logits = _Logits(matrix(h, kind), matrix(weight, kind), None if bias is None else prepared(bias, kind), softcap)
    maximum = torch.full((h.shape[0],), -torch.inf, dtype=kind)
    total, target = torch.zeros_like(maximum), torch.zeros_like(maximum)
    for rows, columns in logits.tiles():
        _C.cross_entropy_tile(
            array(logits.compute(rows, columns)), array(targets[rows]), columns.start,
            array(maximum[rows]), array(total[rows]), array(target[rows]), threads,
        )  # fmt: skip
    lse = maximum + total.log()
    return torch.where(targets == ignore_index, 0.0, lse - target), lse


def linear_cross_entropy_backward(
    grad: Tensor, h: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, bias: Tensor | None,
    ignore_index: int, softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    kind, threads = compute_type(h.dtype), torch.get_num_threads()
    targets, lse = targets.contiguous(), prepared(lse, kind)
    upstream = torch.where(targets == ignore_index, 0.0, prepared(grad, kind))
    hidden, table = matrix(h, kind), matrix(weight, kind)
    logits = _Logits(hidden, table, None if bias is None else prepared(bias, kind), softcap)
    dh, dweight = torch.zeros_like(hidden), torch.zeros_like(table)
    dbias = torch.zeros(0 if bias is None else table.shape[0], dtype=kind)
    for rows, columns in logits.tiles():
        tile = logits.compute(rows, columns)
        slope = None if softcap is None else 1.0 - (tile / softcap).square()
        _C.cross_entropy_tile_backward(
            array(tile), array(targets[rows]), columns.start, array(lse[rows]), array(upstream[rows]), threads
        )
        if slope is not None:
            tile.mul_(slope)
        dh[rows].addmm_(tile, table[columns])
        dweight[columns].addmm_(tile.t(), hidden[rows])
        if bias is not None:
            dbias[columns] += tile.sum(dim=0)
    return dh.to(h.dtype), dweight.to(weight.dtype), dbias.to(h.dtype if bias is None else bias.dtype)
