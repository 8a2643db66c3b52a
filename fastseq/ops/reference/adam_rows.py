"""Plain PyTorch twin of fastseq/ops/adam_rows.py."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def adam_rows(
    weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, last_step: Tensor, history: Tensor, clock: Tensor,
    rows: Tensor | None, grad: Tensor | None, count: Tensor | None, beta1: float, beta2: float, eps: float,
) -> None:  # fmt: skip
    if rows is None:
        rows = torch.arange(weight.shape[0], device=weight.device)
    elif count is not None:
        valid = torch.arange(rows.shape[0], device=rows.device) < count
        rows, grad = rows[valid], None if grad is None else grad[valid]
    now, offset = clock.unbind()
    done = now if grad is None else now - 1
    last = last_step[rows].long()
    behind = (last > 0) & (last < done)
    late = rows[behind]
    moves, keep1, keep2 = _missed(exp_avg_sq[late], history, last[behind], done, offset, beta1, beta2, eps)
    weight[late] -= exp_avg[late] * moves
    exp_avg[late] *= keep1
    exp_avg_sq[late] *= keep2
    last_step[late] = done.int()
    if grad is not None:
        rate, scale = history[now + offset, :2].to(weight.dtype)
        first = beta1 * exp_avg[rows] + (1 - beta1) * grad
        second = beta2 * exp_avg_sq[rows] + (1 - beta2) * grad * grad
        weight[rows] -= rate * first / (second.sqrt() + eps * scale)
        exp_avg[rows] = first
        exp_avg_sq[rows] = second
        last_step[rows] = now.int()


def _missed(
    second: Tensor, history: Tensor, last: Tensor, done: Tensor, offset: Tensor, beta1: float, beta2: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the steps after ``last``: what the first moment is to be multiplied by for the weight's move, [R, d], and what
    the moments are multiplied by, [R, 1]."""
    kind, decay, spread = second.dtype, beta1 / math.sqrt(beta2), 1 / math.sqrt(beta2)
    missed = done - last
    lead = torch.minimum(history[last + offset, 2].clamp(0, 2.0**31).long(), missed)
    root = second.sqrt()
    moves = torch.zeros_like(second)
    for k in range(1, int(lead.max()) + 1 if lead.numel() else 1):
        rate, scale = history[torch.minimum(last + k, done) + offset, :2].unbind(1)
        part = torch.where(k <= lead, rate * decay**k, 0.0)[:, None].to(kind)
        moves += part / (root + (eps * scale * spread**k)[:, None].to(kind))
    _, scale, _, total, *sums = history[last + lead + offset].unbind(1)
    # Moments about the scale become those about the mean, as shares of the mean.
    shift, two, three, four = (torch.where(total > 0, x / total, 0.0) for x in sums)
    mean = scale + shift
    m2 = (two - shift**2) / mean**2
    m3 = (three - 3 * shift * two + 2 * shift**3) / mean**3
    m4 = (four - 4 * shift * three + 6 * shift**2 * two - 3 * shift**4) / mean**4
    total, centre = (
        total * decay ** lead.double(),
        (eps * mean * spread ** lead.double()).clamp(max=1e30),
    )  # finite in float32
    total, centre, m2, m3, m4 = (x[:, None].to(kind) for x in (total, centre, m2, m3, m4))
    inverse = 1 / (root + centre)
    y = centre * inverse
    moves += total * inverse * (1 + y * y * (m2 - y * (m3 - y * m4)))
    keep1 = beta1 ** missed.double()
    keep1 = torch.where(keep1 < 1e-20, 0.0, keep1)  # before it is subnormal, which is slow
    return moves, keep1[:, None].to(kind), (beta2 ** missed.double())[:, None].to(kind)
