"""Sampled losses: one pass over the rows gives loss, gradient of the scores and gradient of the hidden state.

Per-target negatives: a program holds a tile of rows, gathers one negative's row of the table for each of them into
registers, and uses it twice, for its score and for the gradient of the row; so the table is read once and gathered rows
never reach memory (sampled softmax rescales what it has summed when a larger logit comes, as attention does, and turns
its logits into derivatives at the end). With a dense layer before the loss the same tile begins and ends with its
products: hidden states come in, and their gradient goes out. Shared negatives: the scores are one matrix
product, written to where their derivatives will stand; a kernel replaces them in place, and a second product gives the
gradient of the rows. The gradient of the table: kernels/segments.py.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastseq.ops.sampled_loss import IGNORED

from .elementary import softplus
from .products import float32_precision, product, refuse_float64, shared_memory
from .rows import WIDEST
from .segments import segment_sum
from .sizes import cdiv, next_power_of_2

# Elements of a tile of rows, 8 a thread: 16 spill a few bytes. With shared negatives, the scores read at a time and the
# warps for that. Not yet measured.
TILE, WARPS = 512, 2
SHARED_TILE, SHARED_WARPS = 1024, 4
# Rows and warps of a tile with a dense layer, and columns that are multiplied at a time. Not yet measured.
LAYER_ROWS, LAYER_WARPS, LAYER_STEP = 32, 8, {"ieee": 16, "tf32": 64}
# Elements and warps of the backward's element-wise kernel.
SCALE_TILE, SCALE_WARPS = 1024, 4

_IGNORED = tl.constexpr(IGNORED)


@triton.jit
def _term(score, positive, counted, share, LOSS: tl.constexpr):
    """A negative's part of bpr or bce, and its derivative by the score."""
    value, derivative = softplus(score - positive if LOSS == "bpr" else score)
    return tl.where(counted, value * share, 0.0), tl.where(counted, derivative * share, 0.0)


@triton.jit
def _exponential(logit, largest):
    """exp(logit - higher) for the higher of both, that, and what sums so far are multiplied with."""
    higher = tl.maximum(largest, logit)
    bounded = tl.where(higher == float("-inf"), 0.0, higher)  # nothing counted so far
    return tl.exp(logit - bounded), higher, tl.exp(largest - bounded)


@triton.jit
def _ends(positive, loss, sum, largest, kept, beta, share, factor, LOSS: tl.constexpr):
    """The loss, its derivative by the positive score, and for sampled softmax what exponentials are multiplied with."""
    scale = share
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
    else:
        tl.static_assert(LOSS == "bce", "this loss has no kernel")
        value, derivative = softplus(-positive)
        loss += beta * share * value
        d_positive = -beta * share * derivative
    return loss, d_positive, scale


@triton.jit(do_not_specialize=["n_rows"])
def _losses_of_rows(h, weight, bias, table, targets, negatives, log_q, losses, y, d_scores, d_rows, d_h, beta,
                    factor, n_rows, count, width, hidden, n_items, LOSS: tl.constexpr, ROWS: tl.constexpr,
                    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, STEP: tl.constexpr,
                    PRECISION: tl.constexpr):  # fmt: skip
    """Rows with negatives of their own; where HIDDEN is not 0, those that the layer makes of the states h."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    some = row < n_rows
    column = tl.arange(0, WIDTH)
    inside = (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    nan = float("nan")
    if HIDDEN > 0:
        first_row = tl.program_id(0) * ROWS
        states = h + first_row.to(tl.int64) * hidden
        x, _ = product(states, weight, n_rows - first_row, width, hidden, ROWS, WIDTH, HIDDEN, STEP, PRECISION)
        x += tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
        x = x.to(y.dtype.element_ty)
        tl.store(y + place, x, mask=some[:, None] & inside)
        x = x.to(tl.float32)
    else:
        x = tl.load(h + place, mask=some[:, None] & inside, other=0.0).to(tl.float32)
    target = tl.load(targets + row, mask=some, other=_IGNORED)
    an_item, ignored = (target >= 0) & (target < n_items), target == _IGNORED
    target_rows = tl.load(
        table + target[:, None] * width + column[None, :], mask=an_item[:, None] & inside, other=0.0
    ).to(tl.float32)  # fmt: skip
    # An id that is no row of the table must not be read, nor pass for one: its score is NaN.
    positive = tl.where(an_item, tl.sum(x * target_rows, axis=1), tl.where(ignored, 0.0, nan))

    negative, score_place = negatives + row * count, d_scores + row * (1 + count) + 1
    kept = tl.where(ignored, 0.0, count)
    for j in range(0, count):
        kept -= tl.where(tl.load(negative + j, mask=ignored == 0, other=_IGNORED) == target, 1.0, 0.0)
    kept = tl.where(ignored, 0.0, kept)
    share = factor / tl.maximum(kept, 1.0) if LOSS == "bpr" else factor / (kept + 1.0)
    loss, sum = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    gradient = tl.zeros((ROWS, WIDTH), tl.float32)
    for j in range(0, count):
        item = tl.load(negative + j, mask=ignored == 0, other=0)
        counted, readable = (item != target) & (ignored == 0), (item >= 0) & (item < n_items) & (ignored == 0)
        rows = tl.load(
            table + item[:, None] * width + column[None, :], mask=readable[:, None] & inside, other=0.0
        ).to(tl.float32)  # fmt: skip
        score = tl.where(readable | ignored, tl.sum(x * rows, axis=1), nan)
        if LOSS == "sampled_softmax":
            score -= tl.load(log_q + row * count + j, mask=some, other=0.0).to(tl.float32)
            score = tl.where(counted, score, float("-inf"))
            tl.store(score_place + j, score, mask=some)
            derivative, largest, shrink = _exponential(score, largest)
            sum = sum * shrink + derivative
            gradient *= shrink[:, None]
        else:
            value, derivative = _term(score, positive, counted, share, LOSS)
            loss += value
            sum += derivative
            tl.store(score_place + j, derivative, mask=some)
        gradient += derivative[:, None] * rows
    loss, d_positive, scale = _ends(
        positive, loss, sum, largest, kept, tl.where(ignored, 0.0, beta), share, factor, LOSS
    )
    if LOSS == "sampled_softmax":
        gradient *= scale[:, None]
        bounded = tl.where(largest == float("-inf"), 0.0, largest)
        tl.debug_barrier()  # a score may have been stored by another thread of this program
        for j in range(0, count):
            score = tl.load(score_place + j, mask=some, other=0.0)
            tl.store(score_place + j, tl.exp(score - bounded) * scale, mask=some)
    tl.store(losses + row, loss, mask=some)
    tl.store(score_place - 1, d_positive, mask=some)
    gradient += d_positive[:, None] * target_rows
    tl.store(d_rows + place, gradient.to(d_rows.dtype.element_ty), mask=some[:, None] & inside)
    if HIDDEN > 0:
        unit = tl.arange(0, HIDDEN)[None, :]
        d_state = tl.zeros((ROWS, HIDDEN), tl.float32)
        tl.debug_barrier()  # what all threads have stored is an operand now
        for first in tl.static_range(0, WIDTH, STEP):
            part = first + tl.arange(0, STEP)
            slope = tl.load(
                d_rows + row[:, None] * width + part[None, :], mask=some[:, None] & (part < width)[None, :], other=0.0
            )  # fmt: skip
            layer = tl.load(
                weight + part[:, None] * hidden + unit, mask=(part < width)[:, None] & (unit < hidden), other=0.0
            )  # fmt: skip
            d_state = tl.dot(slope, layer, d_state, input_precision=PRECISION)
        d_state = d_state.to(d_h.dtype.element_ty)
        tl.store(d_h + row[:, None] * hidden + unit, d_state, mask=some[:, None] & (unit < hidden))


@triton.jit
def _shared_losses(h, table, targets, negatives, log_q, losses, d_h, scores, scores_row, d_positives, d_positives_step,
                   beta, factor, count, width, n_items, LOSS: tl.constexpr, COUNT: tl.constexpr,
                   WIDTH: tl.constexpr):  # fmt: skip
    """A row's scores against the negatives of all rows, which become derivatives, and the target's part of d_h."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    number = tl.arange(0, COUNT)
    scores += row * scores_row

    target = tl.load(targets + row)
    an_item, ignored = (target >= 0) & (target < n_items), target == _IGNORED
    hidden = tl.load(h + row * width + column, mask=column < width, other=0.0).to(tl.float32)
    known = column < tl.where(an_item, width, 0)  # a scalar condition is no part of a mask for Triton 3.9's interpreter
    target_row = tl.load(table + target * width + column, mask=known, other=0.0).to(tl.float32)
    positive = tl.where(an_item, tl.sum(hidden * target_row, axis=0), tl.where(ignored, 0.0, float("nan")))

    hits = 0
    for first in range(0, count, COUNT):
        some = first + number < count
        hits += tl.sum((some & (tl.load(negatives + first + number, mask=some, other=0) == target)).to(tl.int32))
    kept = tl.where(ignored, 0, count - hits).to(tl.float32)
    share = factor / tl.maximum(kept, 1.0) if LOSS == "bpr" else factor / (kept + 1.0)

    loss = 0.0
    sum = 0.0  # of derivatives; of exponentials for sampled softmax
    largest = float("-inf")
    for first in range(0, count, COUNT):
        some = first + number < count
        counted = some & (tl.load(negatives + first + number, mask=some, other=0) != target) & (ignored == 0)
        score = tl.load(scores + first + number, mask=some, other=0.0)
        if LOSS == "sampled_softmax":
            score -= tl.load(log_q + first + number, mask=some, other=0.0).to(tl.float32)
            score = tl.where(counted, score, float("-inf"))
            higher = tl.maximum(largest, tl.max(score, axis=0))
            bounded = tl.where(higher == float("-inf"), 0.0, higher)  # nothing counted so far
            sum = sum * tl.exp(largest - bounded) + tl.sum(tl.exp(score - bounded), axis=0)
            largest = higher
        else:
            value, derivative = _term(score, positive, counted, share, LOSS)
            loss += tl.sum(value, axis=0)
            sum += tl.sum(derivative, axis=0)
            tl.debug_barrier()  # all warps read a tile of few scores, and each makes the sums of what it has read
            tl.store(scores + first + number, derivative, mask=some)
    loss, d_positive, scale = _ends(
        positive, loss, sum, largest, kept, tl.where(ignored, 0.0, beta), share, factor, LOSS
    )
    if LOSS == "sampled_softmax":
        bounded = tl.where(largest == float("-inf"), 0.0, largest)
        tl.debug_barrier()  # as above
        for first in range(0, count, COUNT):
            some = first + number < count
            counted = some & (tl.load(negatives + first + number, mask=some, other=0) != target) & (ignored == 0)
            score = tl.load(scores + first + number, mask=some, other=0.0)
            score -= tl.load(log_q + first + number, mask=some, other=0.0).to(tl.float32)
            derivative = tl.exp(tl.where(counted, score - bounded, float("-inf"))) * scale
            tl.store(scores + first + number, derivative, mask=some)
    tl.store(losses + row, loss)
    tl.store(d_positives + row * d_positives_step, d_positive)
    tl.store(d_h + row * width + column, d_positive * target_row, mask=column < width)


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


def _scale_tile(width: int, count: int) -> tuple[int, int]:
    columns = min(128, next_power_of_2(max(width, 1 + count)))
    return SCALE_TILE // columns, columns


def check_width(item_weight: Tensor) -> None:
    """Raises ValueError for rows of the table that no program holds."""
    if item_weight.shape[1] > WIDEST:
        have = f"item_weight has {item_weight.shape[1]} columns"
        raise ValueError(f"{have}, expected at most {WIDEST}: the Triton kernels hold a whole row")


def sampled_loss(
    h: Tensor, item_weight: Tensor, targets: Tensor, negatives: Tensor, loss: str, log_q: Tensor | None, beta: float,
    padding_idx: int | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    refuse_float64(h, "h")
    check_width(item_weight)
    (n_rows, width), count = h.shape, negatives.shape[-1]
    losses = torch.empty(n_rows, dtype=torch.float32, device=h.device)
    d_h = torch.empty(n_rows, width, dtype=torch.float32, device=h.device)
    d_scores = torch.empty(n_rows, 1 + count, dtype=torch.float32, device=h.device)
    if n_rows == 0:
        return losses, d_h, d_scores
    h, item_weight, targets = h.contiguous(), item_weight.contiguous(), targets.contiguous()
    settings = (item_weight, targets, negatives.contiguous(), loss, log_q, beta, scale)
    if negatives.dim() == 1:
        rows = item_weight[negatives].float()
        shared_losses(h, rows, *settings, losses, d_h, d_scores[:, 1:], d_scores[:, 0])
    else:
        losses_of_rows(h, None, None, *settings, losses, None, d_scores, d_h, None)
    return losses, d_h, d_scores


def losses_of_rows(
    h: Tensor, weight: Tensor | None, bias: Tensor | None, item_weight: Tensor, targets: Tensor,
    negatives: Tensor, loss: str, log_q: Tensor | None, beta: float, scale: float, losses: Tensor, y: Tensor | None,
    d_scores: Tensor, d_rows: Tensor, d_h: Tensor | None,
) -> None:  # fmt: skip
    """Losses of rows with negatives of their own, and their gradients; all tensors contiguous.

    Without a layer the rows are h, and their gradient is d_rows. With one, weight [d, H] and bias, they are y, which it
    makes of the states h, whose gradient is d_h.
    """
    n_rows, width = targets.shape[0], item_weight.shape[1]
    columns, hidden, precision = next_power_of_2(max(width, 1)), 0, float32_precision()
    height, warps = max(1, TILE // columns), min(8, max(WARPS, columns // 512))
    if weight is not None:
        columns, hidden = max(16, columns), max(16, next_power_of_2(h.shape[1]))
        height, warps = LAYER_ROWS if shared_memory(h) > 64 << 10 else LAYER_ROWS // 2, LAYER_WARPS  # AMD's spill
    _losses_of_rows[(cdiv(n_rows, height),)](
        h, weight, bias, item_weight, targets, negatives,
        h if log_q is None else log_q.contiguous(), losses, y, d_scores, d_rows, d_h,
        beta if loss == "gbce" else 1.0, scale, n_rows, negatives.shape[1], width, h.shape[1], item_weight.shape[0],
        LOSS="bce" if loss == "gbce" else loss, ROWS=height, WIDTH=columns, HIDDEN=hidden,
        STEP=min(columns, hidden, LAYER_STEP[precision]), PRECISION=precision,
        num_warps=warps,
    )  # fmt: skip


def shared_losses(
    h: Tensor, rows: Tensor, item_weight: Tensor, targets: Tensor, negatives: Tensor, loss: str, log_q: Tensor | None,
    beta: float, scale: float, losses: Tensor, d_h: Tensor, d_scores: Tensor, d_positives: Tensor,
) -> None:  # fmt: skip
    """Losses of rows with shared negatives, whose rows of the table are ``rows`` [S, d] in float32.

    Writes d_scores [N, S], of adjacent columns, and the targets' d_positives [N], of any stride.
    """
    width, count = h.shape[1], negatives.shape[0]
    torch.mm(h.float(), rows.t(), out=d_scores)
    _shared_losses[(h.shape[0],)](
        h, item_weight, targets, negatives, h if log_q is None else log_q.contiguous(), losses, d_h, d_scores,
        d_scores.stride(0), d_positives, d_positives.stride(0), beta if loss == "gbce" else 1.0, scale, count, width,
        item_weight.shape[0], LOSS="bce" if loss == "gbce" else loss,
        COUNT=min(next_power_of_2(max(count, 1)), SHARED_TILE), WIDTH=next_power_of_2(max(width, 1)),
        num_warps=SHARED_WARPS,
    )  # fmt: skip
    d_h.addmm_(d_scores, rows)


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
