"""Softmax cross-entropy over the catalogue, its gradients made in chunks whose logits stay in the L2 cache.

A sum with gradients, where a chunk has room for enough rows of logits: three products of the library. The first writes
a chunk's logits, ``_softmax`` turns each row into its loss and the gradient of its logits, in place in float32, and two
products take that to the gradients of h and weight. Half types write that gradient beside the logits.

Elsewhere the logits are made twice and never leave registers: ``_losses`` takes a tile of rows and one part of the
catalogue, and keeps the running maximum, the sum of exponentials and the target's logit, which ``_combine`` merges.
With the log-sum-exp, ``_slopes`` writes the gradient of the logits of all rows and a chunk of the items, for the same
two products. Either way a chunk takes CHUNK bytes (half types half as much again for logits that are kept), or those of
one tile of items, which are more from 80,000 rows on; every sum has one order, and no term is left out for being small.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import tanh
from .products import float32_precision, kind, operand, product
from .sizes import cdiv, next_power_of_2


class Tiles(NamedTuple):
    """Rows and items of a tile, columns of h and weight multiplied at a time."""

    rows: int
    items: int
    step: int
    warps: int
    stages: int


# Programs that fill a large chip, four each on 128 multiprocessors: few tiles are cut into so many parts.
PROGRAMS = 512
# "ieee" is float32 without the matrix unit. The largest tiles among those tried that neither spill nor need more shared
# memory than there is on any architecture of the compile report: twice the tile of the other side, or 4 warps for
# "ieee", spill 0.1 to 17 KB at 128 columns. Not yet measured.
TILES = {"half": Tiles(64, 128, 128, 4, 2), "tf32": Tiles(64, 64, 128, 4, 2), "ieee": Tiles(64, 64, 32, 8, 2)}
# Above 128 columns the same tiles need up to 256 KB, and "ieee" spills 0.6 KB.
WIDE_TILES = {"half": Tiles(64, 64, 128, 4, 2), "tf32": Tiles(64, 32, 64, 4, 2), "ieee": Tiles(64, 32, 32, 8, 2)}
COMBINED_ROWS = 128
# Bytes of a chunk, of the 50 MB of an H100's L2.
CHUNK = 40 << 20
MOST_TILES = 65535  # of a chunk's items: CUDA's limit of a grid's second size, which few rows would exceed
# Rows that a chunk must hold for its logits to be kept. They cost 24 bytes of traffic each (18 in half types), the
# gradient of weight, read and written once a chunk, 8 a column and row; a fourth product and the gradient of the logits
# alone take 12 (6). That pays where the matrix unit multiplies; without it a product costs more. By arithmetic: to
# 20,000 items, and 109,000. Not yet measured.
KEPT_ROWS = {"half": 512, "tf32": 512, "ieee": 96}
ROWS_STEP = 32  # rows of a chunk are a multiple: their targets and losses start aligned
# Warps of a row of logits, and how many 16 bytes each thread reads at a time, up to LONG items and above.
LONG, ROW_LAUNCHES = 8192, ((2, 2), (16, 2))


@triton.jit
def _bent(logit, softcap, SOFTCAP: tl.constexpr):
    """The logit that counts, and its derivative by the product's."""
    derivative = 1.0
    if SOFTCAP:
        bend = tanh(logit / softcap)
        logit, derivative = softcap * bend, 1.0 - bend * bend
    return logit, derivative


@triton.jit
def _logits(h, weight, bias, first, rows_left, n_items, width, softcap, BIAS: tl.constexpr, SOFTCAP: tl.constexpr,
            ROWS: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """Of a tile of rows, whose first h points to, and of items from ``first`` on; and their derivatives."""
    table = weight + tl.cast(first, tl.int64) * width
    logit, _ = product(h, table, rows_left, n_items - first, width, ROWS, ITEMS, WIDTH, STEP, PRECISION)
    if BIAS:
        item = first + tl.arange(0, ITEMS)
        logit += tl.load(bias + item, mask=item < n_items, other=0.0).to(tl.float32)[None, :]
    return _bent(logit, softcap, SOFTCAP)


@triton.jit
def _add_exponentials(m, sum, logit):
    """The running maximum and sum of exponentials of each row, with more logits [ROWS, ...] of it."""
    higher = tl.maximum(m, tl.max(logit, axis=1))
    bounded = tl.where(higher == float("-inf"), 0.0, higher)  # all barred so far
    return higher, sum * tl.exp(m - bounded) + tl.sum(tl.exp(logit - bounded[:, None]), axis=1)


@triton.jit(do_not_specialize=["n_rows"])
def _losses(h, weight, bias, targets, largest, sums, hits, n_rows, n_items, width, part, softcap,
            BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr,
            STEP: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    first_row = tl.program_id(0) * ROWS
    row = first_row + tl.arange(0, ROWS)
    start = tl.program_id(1) * part
    stop = tl.minimum(start + part, n_items)
    target = tl.load(targets + row, mask=row < n_rows, other=-1)
    target = tl.where((target >= 0) & (target < n_items), target, -1).to(tl.int32)
    h += first_row.to(tl.int64) * width
    m = tl.full((ROWS,), float("-inf"), tl.float32)
    sum = tl.zeros((ROWS,), tl.float32)
    hit = tl.zeros((ROWS,), tl.float32)
    for first in range(start, stop, ITEMS):
        logit, _ = _logits(
            h, weight, bias, first, n_rows - first_row, n_items, width, softcap, BIAS, SOFTCAP, ROWS, ITEMS,
            WIDTH, STEP, PRECISION,
        )  # fmt: skip
        item = (first + tl.arange(0, ITEMS))[None, :]
        hit += tl.sum(tl.where(item == target[:, None], logit, 0.0), axis=1)
        m, sum = _add_exponentials(m, sum, tl.where(item < n_items, logit, float("-inf")))
    offset = tl.program_id(1).to(tl.int64) * n_rows + row
    tl.store(largest + offset, m, mask=row < n_rows)
    tl.store(sums + offset, sum, mask=row < n_rows)
    tl.store(hits + offset, hit, mask=row < n_rows)


@triton.jit(do_not_specialize=["n_rows", "parts"])
def _combine(largest, sums, hits, targets, losses, lses, n_rows, n_items, parts, ignore_index,
             ROWS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n_rows
    target = tl.load(targets + row, mask=inside, other=0)
    m = tl.full((ROWS,), float("-inf"), tl.float32)
    sum = tl.zeros((ROWS,), tl.float32)
    hit = tl.zeros((ROWS,), tl.float32)
    for part in range(0, parts):
        offset = part * n_rows + row
        other = tl.load(largest + offset, mask=inside, other=0.0)
        higher = tl.maximum(m, other)
        bounded = tl.where(higher == float("-inf"), 0.0, higher)
        sum = sum * tl.exp(m - bounded)
        sum += tl.load(sums + offset, mask=inside, other=1.0) * tl.exp(other - bounded)
        hit += tl.load(hits + offset, mask=inside, other=0.0)
        m = higher
    lse = m + tl.log(sum)
    # A target that is no item has no logit; its loss must not pass for one.
    loss = tl.where((target >= 0) & (target < n_items), lse - hit, float("nan"))
    tl.store(losses + row, tl.where(target == ignore_index, 0.0, loss), mask=inside)
    tl.store(lses + row, lse, mask=inside)


@triton.jit(do_not_specialize=["first", "n_rows"])
def _slopes(h, weight, bias, targets, lses, grad, grad_row, slopes, first, n_rows, n_items, width, pitch, ignore_index,
            softcap, BIAS: tl.constexpr, SOFTCAP: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr,
            WIDTH: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The gradient of the logits of all rows and the items from ``first`` on, a tile a program."""
    first_row = tl.program_id(0) * ROWS
    row = first_row + tl.arange(0, ROWS)
    first_item = first + tl.program_id(1) * ITEMS
    logit, derivative = _logits(
        h + first_row.to(tl.int64) * width, weight, bias, first_item, n_rows - first_row, n_items, width, softcap, BIAS,
        SOFTCAP, ROWS, ITEMS, WIDTH, STEP, PRECISION,
    )  # fmt: skip
    target = tl.load(targets + row, mask=row < n_rows, other=0)
    ignored = target == ignore_index
    some = (target >= 0) & (target < n_items)
    lse = tl.load(lses + row, mask=row < n_rows, other=0.0)
    shift = tl.where(ignored, float("inf"), tl.where(some, lse, float("nan")))
    place = tl.where(some & (target != ignore_index), target - first_item, -1).to(tl.int32)
    slope = tl.exp(logit - shift[:, None]) - tl.where(tl.arange(0, ITEMS)[None, :] == place[:, None], 1.0, 0.0)
    slope *= derivative
    if grad is not None:
        slope *= tl.load(grad + row * grad_row, mask=row < n_rows, other=0.0).to(tl.float32)[:, None]
    # There is room for whole tiles.
    offset = row.to(tl.int64)[:, None] * pitch + (tl.program_id(1) * ITEMS + tl.arange(0, ITEMS))[None, :]
    tl.store(slopes + offset, slope.to(slopes.dtype.element_ty))


@triton.jit
def _softmax(logits, slopes, bias, targets, losses, n_items, pitch, ignore_index, softcap, BIAS: tl.constexpr,
             SOFTCAP: tl.constexpr, LANES: tl.constexpr, EACH: tl.constexpr):  # fmt: skip
    """The loss of a row, and the gradient of its logits, which may take their place. LANES EACH divides the pitch."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * pitch
    slopes += row * pitch
    target = tl.load(targets + row)
    some = (target >= 0) & (target < n_items)
    place = tl.where(some, target, 0)
    hit = tl.load(logits + place)
    if BIAS:
        hit += tl.load(bias + place).to(tl.float32)
    hit, derivative = _bent(hit, softcap, SOFTCAP)
    # Lanes keep a maximum and a sum each, so that threads meet once a row.
    column = tl.arange(0, LANES)[:, None] * EACH + tl.arange(0, EACH)[None, :]
    m = tl.full((LANES,), float("-inf"), tl.float32)
    sum = tl.zeros((LANES,), tl.float32)
    for first in range(0, n_items, LANES * EACH):
        item = first + column
        logit = tl.load(logits + item)
        if BIAS:
            logit += tl.load(bias + item, mask=item < n_items, other=0.0).to(tl.float32)
        logit, _ = _bent(logit, softcap, SOFTCAP)
        m, sum = _add_exponentials(m, sum, tl.where(item < n_items, logit, float("-inf")))
    largest = tl.max(m, axis=0)
    bounded = tl.where(largest == float("-inf"), 0.0, largest)
    lse = largest + tl.log(tl.sum(sum * tl.exp(m - bounded), axis=0))
    ignored = target == ignore_index
    # A target that is no item has no logit; its loss must not pass for one.
    tl.store(losses + row, tl.where(ignored, 0.0, tl.where(some, lse - hit, float("nan"))))
    shift = tl.where(ignored, float("inf"), tl.where(some, lse, float("nan")))
    for first in range(0, n_items, LANES * EACH):
        item = first + column
        logit = tl.load(logits + item)
        if BIAS:
            logit += tl.load(bias + item, mask=item < n_items, other=0.0).to(tl.float32)
        logit, bend = _bent(logit, softcap, SOFTCAP)
        tl.store(slopes + item, (tl.exp(logit - shift) * bend).to(slopes.dtype.element_ty))
    tl.debug_barrier()  # what another thread has written at the target is written over
    slope = (tl.exp(hit - lse) - 1.0) * derivative
    tl.store(slopes + place, slope.to(slopes.dtype.element_ty), mask=some & ~ignored)


def _operands(
    h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, bfloat16: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h, weight, targets and bias, contiguous, the first two of one type. Without a bias: h, which is not read."""
    dtype = torch.bfloat16 if bfloat16 else torch.promote_types(h.dtype, weight.dtype)
    x, table = operand(h, "h", dtype), operand(weight, "weight", dtype)
    return x, table, targets.contiguous(), x if bias is None else bias.contiguous()


def _tiles(x: Tensor) -> tuple[Tiles, dict[str, int]]:
    width = x.shape[1]
    tiles, columns = (TILES if width <= 128 else WIDE_TILES)[kind(x)], max(16, next_power_of_2(width))
    return tiles, {"ROWS": tiles.rows, "ITEMS": tiles.items, "WIDTH": columns, "STEP": min(tiles.step, columns)}


def _parts(tiles: int, length: int, tile: int) -> tuple[int, int]:
    """Into how many parts to cut a walk of ``length`` that each of ``tiles`` programs makes, and the length of one."""
    steps = max(1, cdiv(length, tile))
    part = cdiv(steps, min(steps, cdiv(PROGRAMS, max(tiles, 1)))) * tile
    return max(1, cdiv(length, part)), part


def linear_cross_entropy(
    h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, softcap: float | None,
    bfloat16: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x, table, targets, shift = _operands(h, weight, targets, bias, bfloat16)
    (n_rows, width), n_items = x.shape, table.shape[0]
    losses = torch.empty(n_rows, dtype=torch.float32, device=h.device)
    lses = torch.empty_like(losses)
    if n_rows == 0:
        return losses, lses
    launch, sizes = _tiles(x)
    tiles = cdiv(n_rows, launch.rows)
    parts, part = _parts(tiles, n_items, launch.items)
    partial = [torch.empty(parts, n_rows, dtype=torch.float32, device=h.device) for _ in range(3)]
    _losses[tiles, parts](
        x, table, shift, targets, *partial, n_rows, n_items, width, part, softcap or 1.0,
        BIAS=bias is not None, SOFTCAP=softcap is not None, **sizes, PRECISION=float32_precision(),
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    _combine[(cdiv(n_rows, COMBINED_ROWS),)](
        *partial, targets, losses, lses, n_rows, n_items, parts, ignore_index, ROWS=COMBINED_ROWS
    )
    return losses, lses


class _Gradients:
    """The gradients of h, weight and bias, summed in float32 from chunks of the gradient of the logits."""

    def __init__(self, x: Tensor, table: Tensor, bias: Tensor | None) -> None:
        # Probabilities times 1 / N are too small for float16.
        wide = torch.float32 if x.dtype == torch.float16 else x.dtype
        self.x, self.table, self.bias = x.to(wide), table.to(wide), bias
        # Of nothing they are 0.
        make = torch.empty if x.shape[0] > 0 < table.shape[0] else torch.zeros
        sizes = x.shape, table.shape, (0,) if bias is None else bias.shape
        self.dx, self.dtable, self.dbias = (make(size, dtype=torch.float32, device=x.device) for size in sizes)

    def add(self, slopes: Tensor, rows: slice, items: slice) -> None:
        """``slopes``: the gradient of the logits of rows and items. One of them is all there is."""
        _multiply(slopes, self.table[items], self.dx[rows], items.start > 0)
        _multiply(slopes.t(), self.x[rows], self.dtable[items], rows.start > 0)
        if self.bias is not None:
            sums = slopes.sum(0, dtype=torch.float32)
            self.dbias[items] = sums if rows.start == 0 else self.dbias[items] + sums

    def to(self, h: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dbias = h.new_empty(0) if self.bias is None else self.dbias.to(self.bias.dtype)
        return self.dx.to(h.dtype), self.dtable.to(weight.dtype), dbias


def _multiply(a: Tensor, b: Tensor, total: Tensor, add: bool = False) -> None:
    """The product a b, written to ``total``, float32, or added to it."""
    if not a.is_cuda:
        a, b = a.float(), b.float()
    if a.dtype == torch.float32:
        torch.addmm(total, a, b, beta=float(add), out=total)
    elif add:
        total += torch.mm(a, b, out_dtype=torch.float32)
    else:
        torch.mm(a, b, out_dtype=torch.float32, out=total)


def linear_cross_entropy_backward(
    grad: Tensor | None, h: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, bias: Tensor | None,
    ignore_index: int, softcap: float | None, bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``grad`` None: of the sum of the losses."""
    x, table, targets, shift = _operands(h, weight, targets, bias, bfloat16)
    lse = lse.contiguous()
    if grad is not None and grad.stride(0) > 1:
        grad = grad.contiguous()  # the kernel's row times stride has 32 bits
    (n_rows, width), n_items = x.shape, table.shape[0]
    gradients = _Gradients(x, table, bias)
    launch, sizes = _tiles(x)
    most = CHUNK // (max(n_rows, 1) * gradients.x.element_size() * launch.items)
    chunk = min(max(1, most), MOST_TILES) * launch.items
    chunk = min(chunk, cdiv(n_items, launch.items) * launch.items)
    slopes = torch.empty(cdiv(n_rows, launch.rows) * launch.rows, chunk, dtype=gradients.x.dtype, device=x.device)
    for first in range(0, n_items if n_rows > 0 else 0, max(chunk, 1)):
        items = slice(first, min(first + chunk, n_items))
        _slopes[cdiv(n_rows, launch.rows), cdiv(items.stop - first, launch.items)](
            x, table, shift, targets, lse, grad, 0 if grad is None else grad.stride(0), slopes, first, n_rows, n_items,
            width, chunk, ignore_index, softcap or 1.0, BIAS=bias is not None, SOFTCAP=softcap is not None, **sizes,
            PRECISION=float32_precision(), num_warps=launch.warps, num_stages=launch.stages,
        )  # fmt: skip
        gradients.add(slopes[:n_rows, : items.stop - first], slice(0, n_rows), items)
    return gradients.to(h, weight)


def summed_linear_cross_entropy(
    h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, softcap: float | None,
    bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    x, table, ids, shift = _operands(h, weight, targets, bias, bfloat16)
    n_rows, n_items = x.shape[0], table.shape[0]
    warps, each = ROW_LAUNCHES[n_items > LONG]
    pitch = cdiv(n_items, 128 * each * warps) * 128 * each * warps
    rows = CHUNK // (4 * max(pitch, 1)) // ROWS_STEP * ROWS_STEP
    if n_rows == 0 or n_items == 0 or rows < min(n_rows, KEPT_ROWS[kind(x)]):
        losses, lse = linear_cross_entropy(h, weight, targets, bias, ignore_index, softcap, bfloat16)
        return losses.sum(), *linear_cross_entropy_backward(
            None, h, weight, targets, lse, bias, ignore_index, softcap, bfloat16
        )  # fmt: skip
    gradients = _Gradients(x, table, bias)
    losses = torch.empty(n_rows, dtype=torch.float32, device=h.device)
    logits = torch.empty(min(rows, n_rows), pitch, dtype=torch.float32, device=h.device)
    slopes = logits if gradients.x.dtype == torch.float32 else torch.empty_like(logits, dtype=gradients.x.dtype)
    for first in range(0, n_rows, rows):
        part = slice(first, min(first + rows, n_rows))
        count = part.stop - first
        _multiply(x[part], table.t(), logits[:count, :n_items])
        _softmax[(count,)](
            logits, slopes, shift, ids[part], losses[part], n_items, pitch, ignore_index, softcap or 1.0,
            BIAS=bias is not None, SOFTCAP=softcap is not None, LANES=32 * each * warps, EACH=4, num_warps=warps,
        )  # fmt: skip
        gradients.add(slopes[:count, :n_items], part, slice(0, n_items))
    return losses.sum(), *gradients.to(h, weight)
