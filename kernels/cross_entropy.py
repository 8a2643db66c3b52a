"""Softmax cross-entropy over the catalogue; logits live in registers, one tile at a time.

Forward: a program takes a tile of rows and one part of the catalogue, and keeps the running maximum, the sum of
exponentials and the target's logit; a small kernel merges the parts. Backward, lock-free: a program owns a tile of
rows (gradient of h) or of items (gradient of weight and bias), walks over the other side and computes the logits again
from the saved log-sum-exp, so every gradient has one writer. Where such tiles are too few for the chip, the walk is cut
into parts whose sums are added afterwards, in order. Exact: no term is left out for being small.
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
    """The side whose result it is (forward: rows), the other side, columns of h and weight multiplied at a time."""

    mine: int
    others: int
    step: int
    warps: int
    stages: int


# Programs that fill a large chip, four each on 128 multiprocessors: few tiles are cut into so many parts.
PROGRAMS = 512
# "ieee" is float32 without the matrix unit. The largest tiles among those tried that neither spill nor need more shared
# memory than there is on any architecture of the compile report: twice the tile of the other side, or 4 warps for
# "ieee", spill 0.1 to 17 KB at 128 columns. Not yet measured.
FORWARD = {"half": Tiles(64, 128, 128, 4, 2), "tf32": Tiles(64, 64, 128, 4, 2), "ieee": Tiles(64, 64, 32, 8, 2)}
# Above 128 columns the same tiles need up to 256 KB, and "ieee" spills 0.6 KB.
WIDE_FORWARD = {"half": Tiles(64, 64, 128, 4, 2), "tf32": Tiles(64, 32, 64, 4, 2), "ieee": Tiles(64, 32, 32, 8, 2)}
# Larger ones spill 8 to 560 bytes somewhere, with a bias and a softcap or with more than 128 columns. float16, whose
# slopes are multiplied as tf32, spills with two stages on sm_100.
BACKWARD = {
    "half": Tiles(64, 32, 128, 4, 2),
    "float16": Tiles(64, 32, 128, 4, 1),
    "tf32": Tiles(32, 32, 64, 4, 2),
    "ieee": Tiles(32, 16, 32, 4, 2),
}
# Columns of a gradient that one program sums: wider ones compute their logits once for each such part.
GRADIENT_WIDTH = 128
COMBINED_ROWS = 128


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
        item = first + tl.arange(0, ITEMS)
        table = weight + tl.cast(first, tl.int64) * width
        logit, _ = product(
            h, table, n_rows - first_row, n_items - first, width, ROWS, ITEMS, WIDTH, STEP, PRECISION
        )  # fmt: skip
        if BIAS:
            logit += tl.load(bias + item, mask=item < n_items, other=0.0).to(tl.float32)[None, :]
        if SOFTCAP:
            logit = softcap * tanh(logit / softcap)
        hit += tl.sum(tl.where(item[None, :] == target[:, None], logit, 0.0), axis=1)
        logit = tl.where((item < n_items)[None, :], logit, float("-inf"))
        higher = tl.maximum(m, tl.max(logit, axis=1))
        bounded = tl.where(higher == float("-inf"), 0.0, higher)  # all barred so far
        sum = sum * tl.exp(m - bounded) + tl.sum(tl.exp(logit - bounded[:, None]), axis=1)
        m = higher
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


@triton.jit(do_not_specialize=["a_rows", "b_rows"])
def _gradient(a, b, bias, targets, lses, grad, grad_row, d_a, d_bias, a_rows, b_rows, width, n_items, part,
              ignore_index, softcap, ITEMS: tl.constexpr, BIAS: tl.constexpr, SOFTCAP: tl.constexpr,
              A: tl.constexpr, B: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr,
              PRECISION: tl.constexpr):  # fmt: skip
    """The gradient of a tile of a: of the items and their bias if ITEMS (then b is h), else of h (then b is weight)."""
    first_row = tl.program_id(0) * A
    a_row = first_row + tl.arange(0, A)
    a += first_row.to(tl.int64) * width
    start = tl.program_id(1) * part
    stop = tl.minimum(start + part, b_rows)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((A, COLUMNS), tl.float32)
    bias_total = tl.zeros((A,), tl.float32)
    for first in range(start, stop, B):
        b_row = first + tl.arange(0, B)
        tile = b + tl.cast(first, tl.int64) * width
        logit, other = product(
            a, tile, a_rows - first_row, b_rows - first, width, A, B, WIDTH, STEP, PRECISION
        )  # fmt: skip
        if ITEMS:
            row, item = b_row[None, :], a_row[:, None]
            some_row, some_item = row < b_rows, item < a_rows
        else:
            row, item = a_row[:, None], b_row[None, :]
            some_row, some_item = row < a_rows, item < b_rows
        target = tl.load(targets + row, mask=some_row, other=0)
        scale = tl.load(grad + row * grad_row, mask=some_row, other=0.0).to(tl.float32)
        scale = tl.where((target >= 0) & (target < n_items), scale, float("nan"))
        lse = tl.load(lses + row, mask=some_row, other=0.0)
        if BIAS:
            logit += tl.load(bias + item, mask=some_item, other=0.0).to(tl.float32)
        if SOFTCAP:
            bend = tanh(logit / softcap)
            logit = softcap * bend
        slope = tl.exp(logit - lse) - tl.where(item == target.to(tl.int32), 1.0, 0.0)
        if SOFTCAP:
            slope *= 1.0 - bend * bend
        slope = tl.where(some_row & some_item & (target != ignore_index), slope * scale, 0.0)
        if ITEMS and BIAS:
            bias_total += tl.sum(slope, axis=1)
        if WIDTH > STEP:
            offset = tl.arange(0, B)[:, None] * width + column[None, :]
            other = tl.load(tile + offset, mask=(b_row < b_rows)[:, None] & (column < width)[None, :], other=0.0)
        if b.dtype.element_ty == tl.float16:
            # Probabilities times 1 / N are too small for float16; tf32 holds them, and float16 exactly.
            total = tl.dot(slope, other.to(tl.float32), total, input_precision="tf32")
        else:
            total = tl.dot(slope.to(other.dtype), other, total, input_precision=PRECISION)
    offset = tl.program_id(1).to(tl.int64) * a_rows + a_row
    inside = (a_row < a_rows)[:, None] & (column < width)[None, :]
    tl.store(d_a + offset[:, None] * width + column[None, :], total.to(d_a.dtype.element_ty), mask=inside)
    if ITEMS and BIAS and tl.program_id(2) == 0:
        tl.store(d_bias + offset, bias_total.to(d_bias.dtype.element_ty), mask=a_row < a_rows)


def _operands(
    h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, bfloat16: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h, weight, targets and bias, contiguous, the first two of one type. Without a bias: h, which is not read."""
    dtype = torch.bfloat16 if bfloat16 else torch.promote_types(h.dtype, weight.dtype)
    x, table = operand(h, "h", dtype), operand(weight, "weight", dtype)
    return x, table, targets.contiguous(), x if bias is None else bias.contiguous()


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
    launch, columns = (FORWARD if width <= 128 else WIDE_FORWARD)[kind(x)], max(16, next_power_of_2(width))
    tiles = cdiv(n_rows, launch.mine)
    parts, part = _parts(tiles, n_items, launch.others)
    partial = [torch.empty(parts, n_rows, dtype=torch.float32, device=h.device) for _ in range(3)]
    _losses[tiles, parts](
        x, table, shift, targets, *partial, n_rows, n_items, width, part, softcap or 1.0,
        BIAS=bias is not None, SOFTCAP=softcap is not None, ROWS=launch.mine, ITEMS=launch.others, WIDTH=columns,
        STEP=min(launch.step, columns), PRECISION=float32_precision(), num_warps=launch.warps,
        num_stages=launch.stages,
    )  # fmt: skip
    _combine[(cdiv(n_rows, COMBINED_ROWS),)](
        *partial, targets, losses, lses, n_rows, n_items, parts, ignore_index, ROWS=COMBINED_ROWS
    )
    return losses, lses


def linear_cross_entropy_backward(
    grad: Tensor, h: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, bias: Tensor | None,
    ignore_index: int, softcap: float | None, bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x, table, targets, shift = _operands(h, weight, targets, bias, bfloat16)
    lse = lse.contiguous()
    grad = grad if grad.stride(0) <= 1 else grad.contiguous()  # the kernel's row times stride has 32 bits
    width, n_items = x.shape[1], table.shape[0]
    launch, columns = (
        BACKWARD["float16" if x.dtype == torch.float16 else kind(x)],
        max(16, next_power_of_2(width)),
    )
    step = min(launch.step, columns)
    across = columns if step == columns else min(columns, GRADIENT_WIDTH)

    def gradient(a: Tensor, b: Tensor, dtype: torch.dtype, items: bool) -> tuple[Tensor, Tensor]:
        tiles = cdiv(a.shape[0], launch.mine)
        parts, part = _parts(tiles, b.shape[0], launch.others)
        shape = (parts, a.shape[0], width)
        total = torch.empty(shape, dtype=dtype if parts == 1 else torch.float32, device=h.device)
        bias_dtype = dtype if bias is None else bias.dtype
        bias_total = torch.empty(
            shape[:2] if items and bias is not None else (parts, 0),
            dtype=bias_dtype if parts == 1 else torch.float32, device=h.device,
        )  # fmt: skip
        if total.numel() > 0 or bias_total.numel() > 0:
            _gradient[tiles, parts, max(1, cdiv(width, across))](
                a, b, shift, targets, lse, grad, grad.stride(0), total, bias_total, a.shape[0], b.shape[0], width,
                n_items, part, ignore_index, softcap or 1.0, ITEMS=items, BIAS=bias is not None,
                SOFTCAP=softcap is not None, A=launch.mine, B=launch.others, WIDTH=columns, STEP=step,
                COLUMNS=across, PRECISION=float32_precision(), num_warps=launch.warps, num_stages=launch.stages,
            )  # fmt: skip
        if parts == 1:
            return total[0], bias_total[0]
        return total.sum(0).to(dtype), bias_total.sum(0).to(bias_dtype)

    dh, _ = gradient(x, table, h.dtype, False)
    dweight, dbias = gradient(table, x, weight.dtype, True)
    return dh, dweight, h.new_empty(0) if bias is None else dbias


def summed_linear_cross_entropy(
    h: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, ignore_index: int, softcap: float | None,
    bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """No shortcut here: the public function asks for it on the CPU only."""
    losses, lse = linear_cross_entropy(h, weight, targets, bias, ignore_index, softcap, bfloat16)
    grad = losses.new_ones(()).expand_as(losses)
    gradients = linear_cross_entropy_backward(
        grad, h, weight, targets, lse, bias, ignore_index, softcap, bfloat16
    )  # fmt: skip
    return losses.sum(), *gradients
