"""Sampled losses: one pass over the rows gives loss, gradient of the scores and gradient of the hidden state.

Per-target negatives: a program holds one row of h, gathers the table rows of a few negatives at a time into registers,
and uses each twice, for its score and for the gradient of h; so the table is read once and gathered rows never reach
memory (sampled softmax rescales what it has summed when a larger logit comes, as attention does, and turns its scores
into derivatives at the end). Shared negatives: the scores are one matrix product, written
to where their derivatives will stand (an output of the op); the same kernel replaces them in place, and a second
product gives the gradient of h. The gradient of the table: kernels/segments.py.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastseq.ops.sampled_loss import IGNORED

from .elementary import softplus
from .products import refuse_float64
from .rows import WIDEST
from .segments import segment_sum
from .sizes import cdiv, next_power_of_2

# Elements of the tile of gathered rows [COUNT, WIDTH], 16 a thread: one warp a row of h up to that width. (32 spill a
# few bytes, and with several rows a program every thread would hold the scalars of all.) With shared negatives, the
# scores read at a time and the warps for that. Not yet measured.
TILE, SHARED_TILE, SHARED_WARPS = 512, 1024, 4
# Elements and warps of the backward's element-wise kernel.
SCALE_TILE, SCALE_WARPS = 1024, 4

_IGNORED = tl.constexpr(IGNORED)


@triton.jit
def _sampled_loss(h, table, targets, negatives, log_q, losses, d_h, d_scores, beta, factor, count, width, n_items,
                  LOSS: tl.constexpr, SHARED: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < width
    number = tl.arange(0, COUNT)
    if not SHARED:
        negatives += row * count
        log_q += row * count
    scores = d_scores + row * (1 + count) + 1
    nan = float("nan")

    target = tl.load(targets + row)
    an_item = (target >= 0) & (target < n_items)
    hidden = tl.load(h + row * width + column, mask=inside, other=0.0).to(tl.float32)
    known = column < tl.where(an_item, width, 0)  # a scalar condition is no part of a mask for Triton 3.9's interpreter
    target_row = tl.load(table + target * width + column, mask=known, other=0.0).to(tl.float32)
    # An id that is no row of the table must not be read, nor pass for one: its score is NaN.
    ignored = target == _IGNORED
    positive = tl.where(an_item, tl.sum(hidden * target_row, axis=0), tl.where(ignored, 0.0, nan))

    beta = tl.where(ignored, 0.0, beta)

    hits = 0
    for first in range(0, count, COUNT):
        some = first + number < count
        hits += tl.sum((some & (tl.load(negatives + first + number, mask=some, other=0) == target)).to(tl.int32))
    kept = tl.where(ignored, 0, count - hits).to(tl.float32)
    share = factor / tl.maximum(kept, 1.0) if LOSS == "bpr" else factor / (kept + 1.0)

    loss = 0.0
    sum = 0.0  # of derivatives; of exponentials for sampled softmax
    largest = float("-inf")
    gradient = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, count, COUNT):
        some = first + number < count
        item = tl.load(negatives + first + number, mask=some, other=0)
        counted = some & (item != target) & (ignored == 0)
        if SHARED:
            score = tl.load(scores + first + number, mask=some, other=0.0)
        else:
            readable = some & (item >= 0) & (item < n_items) & (ignored == 0)
            rows = tl.load(
                table + item[:, None] * width + column[None, :], mask=readable[:, None] & inside[None, :], other=0.0
            ).to(tl.float32)
            score = tl.where(some & (readable == 0), nan, tl.sum(hidden[None, :] * rows, axis=1))
        if LOSS == "sampled_softmax":
            if not SHARED:
                tl.store(scores + first + number, score, mask=some)
            logit = score - tl.load(log_q + first + number, mask=some, other=0.0).to(tl.float32)
            logit = tl.where(counted, logit, float("-inf"))
            higher = tl.maximum(largest, tl.max(logit, axis=0))
            bounded = tl.where(higher == float("-inf"), 0.0, higher)  # nothing counted so far
            shrink = tl.exp(largest - bounded)
            derivative = tl.exp(logit - bounded)
            sum = sum * shrink + tl.sum(derivative, axis=0)
            gradient *= shrink
            largest = higher
        else:
            value, derivative = softplus(score - positive if LOSS == "bpr" else score)
            derivative = tl.where(counted, derivative * share, 0.0)
            loss += tl.sum(tl.where(counted, value * share, 0.0), axis=0)
            sum += tl.sum(derivative, axis=0)
            tl.store(scores + first + number, derivative, mask=some)
        if not SHARED:
            gradient += tl.sum(derivative[:, None] * rows, axis=0)

    if LOSS == "bpr":
        d_positive = -sum
    elif LOSS == "sampled_softmax":
        # softplus(L - s⁺), L = log Σ exp(s⁻ - log(kept q⁻)), is -s⁺ + log(e^{s⁺} + e^L) without its cancellation.
        # Where nothing is counted the loss is 0, whatever the positive.
        any_counted = kept > 0.0
        sum = tl.where(any_counted, sum, 1.0)
        bounded = tl.where(largest == float("-inf"), 0.0, largest)
        value, probability = softplus(bounded + tl.log(sum) - tl.log(tl.maximum(kept, 1.0)) - positive)
        loss = tl.where(any_counted, value * factor, 0.0)
        probability = tl.where(any_counted, probability * factor, 0.0)
        d_positive = -probability
        scale = probability / sum
        gradient *= scale
        tl.debug_barrier()  # a score may have been stored by another thread of this program
        for first in range(0, count, COUNT):
            some = first + number < count
            counted = some & (tl.load(negatives + first + number, mask=some, other=0) != target) & (ignored == 0)
            logit = tl.load(scores + first + number, mask=some, other=0.0)
            logit -= tl.load(log_q + first + number, mask=some, other=0.0).to(tl.float32)
            derivative = tl.exp(tl.where(counted, logit - bounded, float("-inf"))) * scale
            tl.store(scores + first + number, derivative, mask=some)
    else:
        tl.static_assert(LOSS == "bce", "this loss has no kernel")
        value, derivative = softplus(-positive)
        loss += beta * share * value
        d_positive = -beta * share * derivative

    tl.store(losses + row, loss)
    tl.store(scores - 1, d_positive)
    tl.store(d_h + row * width + column, gradient + d_positive * target_row, mask=inside)


@triton.jit(do_not_specialize=["n_rows"])
def _scale(grad, grad_row, d_h, d_scores, targets, negatives, grad_h, coefficients, ids, n_rows, count, width,
           n_items, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """grad · d_h, grad · d_scores and the ids that belong to them, in one launch."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    some_row = row < n_rows
    scale = tl.load(grad + row * grad_row, mask=some_row, other=0.0).to(tl.float32)
    inside = some_row & (column < width)
    value = tl.load(d_h + row * width + column, mask=inside, other=0.0)
    tl.store(grad_h + row * width + column, (scale * value).to(grad_h.dtype.element_ty), mask=inside)
    inside = some_row & (column <= count)
    offset = row * (1 + count) + column
    value = tl.load(d_scores + offset, mask=inside, other=0.0)
    tl.store(coefficients + offset, scale * value, mask=inside)
    target = tl.load(targets + row, mask=some_row, other=0)
    item = tl.load(negatives + row * count + column - 1, mask=inside & (column > 0), other=0)
    item = tl.where(column == 0, target, item)
    tl.store(ids + offset, tl.where((item >= 0) & (item < n_items), item, -1).to(tl.int32), mask=inside)


def _launch(shared: bool, width: int, count: int) -> dict[str, int]:
    """Constants of a launch for ``count`` negatives."""
    columns, most = next_power_of_2(max(width, 1)), next_power_of_2(max(count, 1))
    if shared:
        return {"COUNT": min(most, SHARED_TILE), "WIDTH": columns, "num_warps": SHARED_WARPS}
    some = min(most, max(1, TILE // columns))
    return {"COUNT": some, "WIDTH": columns, "num_warps": min(8, max(1, some * columns // TILE))}


def _scale_tile(width: int, count: int) -> tuple[int, int]:
    columns = min(128, next_power_of_2(max(width, 1 + count)))
    return SCALE_TILE // columns, columns


def sampled_loss(
    h: Tensor, item_weight: Tensor, targets: Tensor, negatives: Tensor, loss: str, log_q: Tensor | None, beta: float,
    padding_idx: int | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    refuse_float64(h, "h")
    if h.shape[1] > WIDEST:
        raise ValueError(f"h has {h.shape[1]} columns, expected at most {WIDEST}: the Triton kernels hold a whole row")
    (n_rows, width), count, shared = h.shape, negatives.shape[-1], negatives.dim() == 1
    losses = torch.empty(n_rows, dtype=torch.float32, device=h.device)
    d_h = torch.empty(n_rows, width, dtype=torch.float32, device=h.device)
    d_scores = torch.empty(n_rows, 1 + count, dtype=torch.float32, device=h.device)
    if n_rows == 0:
        return losses, d_h, d_scores
    h, item_weight, negatives = h.contiguous(), item_weight.contiguous(), negatives.contiguous()
    rows = item_weight[negatives].float() if shared else None
    if rows is not None:
        torch.mm(h.float(), rows.t(), out=d_scores[:, 1:])
    _sampled_loss[(n_rows,)](
        h, item_weight, targets.contiguous(), negatives, h if log_q is None else log_q.contiguous(), losses, d_h,
        d_scores, beta if loss == "gbce" else 1.0, scale, count, width, item_weight.shape[0],
        LOSS="bce" if loss == "gbce" else loss, SHARED=shared, **_launch(shared, width, count),
    )  # fmt: skip
    if rows is not None:
        d_h.addmm_(d_scores[:, 1:], rows)
    return losses, d_h, d_scores


def sampled_loss_backward(
    grad: Tensor, h: Tensor, item_weight: Tensor, targets: Tensor, negatives: Tensor, *settings_and_saved: Any
) -> tuple[Tensor, Tensor]:
    *_, padding_idx, _, d_h, d_scores = settings_and_saved
    n_items, kind = item_weight.shape[0], item_weight.dtype
    (n_rows, width), count = h.shape, negatives.shape[-1]
    if negatives.dim() == 1:  # the negatives' part is one dense row each, added like a target's
        scale = grad.float().unsqueeze(1)
        source = torch.empty(n_rows + count, width, dtype=torch.float32, device=h.device)
        torch.mul(h, scale, out=source[:n_rows])
        torch.mm(d_scores[:, 1:].t(), source[:n_rows], out=source[n_rows:])
        coefficients = torch.cat((d_scores[:, 0], torch.ones_like(source[n_rows:, 0])))
        grad_item = segment_sum(torch.cat((targets, negatives)), coefficients, source, padding_idx, n_items, kind)
        return (scale * d_h).to(h.dtype), grad_item
    grad_h = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    coefficients = torch.empty(d_scores.shape, dtype=torch.float32, device=h.device)
    ids = torch.empty(d_scores.shape, dtype=torch.int32, device=h.device)
    height, columns = _scale_tile(width, count)
    grid = (cdiv(n_rows, height), cdiv(max(width, 1 + count), columns))
    if n_rows > 0:
        _scale[grid](
            grad, grad.stride(0), d_h.contiguous(), d_scores.contiguous(), targets.contiguous(),
            negatives.contiguous(), grad_h, coefficients, ids, n_rows, count, width,
            n_items, ROWS=height, COLUMNS=columns, num_warps=SCALE_WARPS,
        )  # fmt: skip
    return grad_h, segment_sum(ids, coefficients, h, padding_idx, n_items, kind)
