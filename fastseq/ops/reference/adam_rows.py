"""Plain PyTorch twin of fastseq/ops/adam_rows.py."""

from __future__ import annotations

import torch
from torch import Tensor


def adam_rows(
    weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, last_step: Tensor, rows: Tensor, grad: Tensor, step: Tensor,
    lr: float, beta1: float, beta2: float, eps: float, lazy: bool,
) -> None:  # fmt: skip
    wide = torch.promote_types(weight.dtype, torch.float32)
    if not lazy:
        grad = torch.zeros_like(weight).index_copy(0, rows, grad)
        touched = torch.zeros_like(last_step, dtype=torch.bool).index_fill(0, rows, True)
        rows = torch.arange(weight.shape[0], device=weight.device)
        moved = touched | (last_step > 0)
    else:
        moved = torch.ones_like(rows, dtype=torch.bool)
    since = (step - last_step[rows]).to(torch.float64)
    keep1, keep2 = (torch.pow(beta, since).to(wide)[:, None] for beta in (beta1, beta2))
    grad = grad.to(wide)
    first = keep1 * exp_avg[rows].to(wide) + (1 - beta1) * grad
    second = keep2 * exp_avg_sq[rows].to(wide) + (1 - beta2) * grad * grad
    exponent = step.to(torch.float64)
    rate = lr / (1 - torch.pow(beta1, exponent))
    root = torch.sqrt(1 - torch.pow(beta2, exponent))
    change = rate.to(wide) * first / (second.sqrt() / root.to(wide) + eps)
    weight[rows] = (weight[rows].to(wide) - change).to(weight.dtype)
    exp_avg[rows] = first.to(exp_avg.dtype)
    exp_avg_sq[rows] = second.to(exp_avg_sq.dtype)
    last_step[rows] = torch.where(moved, step, last_step[rows])
