"""Adam for an embedding table of which a step touches few rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register


def adam_rows(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    last_step: Tensor,
    rows: Tensor,
    grad: Tensor,
    step: int | Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    lazy: bool = False,
) -> None:
    """One Adam step, in place, from the gradient of some rows; every other row's gradient is zero.

    By default equal to torch.optim.Adam (no weight decay) on the dense gradient: a row without gradient decays its
    moments and still moves by them. Only rows whose moments are zero, the never touched, are left out.

    ``lazy=True`` updates the rows given and no others. Their moments are first decayed by the steps since
    ``last_step``, so a row's moments equal dense Adam's whenever it is touched. What is approximated: the moves that a
    row would have made by its decaying momentum while it had no gradient are left out.

    Args:
        weight, exp_avg, exp_avg_sq: [V, d], of one dtype; updated.
        last_step: int64 [V], the step that a row's moments are decayed to, 0 while they are zero; updated.
            (Moments taken over from a dense Adam after n steps go with n.)
        rows: int64 [R], distinct.
        grad: [R, d], their gradients.
        step: number of this step, counted from 1; an integer or an int64 tensor with one element (a tensor does not
            recompile a graph at every step).
        lr, betas, eps: as torch.optim.Adam.
        lazy: see above.

    Raises:
        ValueError: for a shape, dtype, lr, beta or eps that does not fit, a row given twice, or a step not above
            ``last_step``.
        IndexError: for a row that is out of range (on the CPU, or with FASTSEQ_CHECK=1).

    Source: Kingma & Ba, "Adam", ICLR 2015.
    """
    _checks.floating(weight=weight, grad=grad)
    if weight.dim() != 2 or grad.dim() != 2 or grad.shape[1] != weight.shape[1]:
        shapes = f"weight has shape {list(weight.shape)} and grad {list(grad.shape)}"
        raise ValueError(f"{shapes}, expected [V, d] and [R, d]")
    for name, value in (("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        if value.shape != weight.shape or value.dtype != weight.dtype:
            expected = f"{weight.dtype} {list(weight.shape)} as weight"
            raise ValueError(f"{name} is {value.dtype} {list(value.shape)}, expected {expected}")
    for name, value, count in (("last_step", last_step, weight.shape[0]), ("rows", rows, grad.shape[0])):
        if value.dtype != torch.int64 or value.shape != (count,):
            raise ValueError(f"{name} is {value.dtype} {list(value.shape)}, expected torch.int64 [{count}]")
    for name, number, below in (
        ("lr", lr, math.inf),
        ("eps", eps, math.inf),
        *((f"betas[{i}]", b, 1.0) for i, b in enumerate(betas)),
    ):
        if not 0.0 <= number < below:
            raise ValueError(f"{name} is {number}, expected at least 0 and below {below}")
    for name, value in (("weight", weight), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq), ("last_step", last_step)):
        if any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True)):
            raise ValueError(f"{name} has elements that share memory, which cannot be updated: pass {name}.clone()")
    if isinstance(step, Tensor) and (step.dtype != torch.int64 or step.numel() != 1):
        raise ValueError(
            f"step is {step.dtype} {list(step.shape)}, expected an integer or torch.int64 with one element"
        )
    if not isinstance(step, Tensor):
        step = torch.tensor(step, dtype=torch.int64, device=weight.device)
    with torch.no_grad():
        _adam_rows(
            weight.detach(), exp_avg, exp_avg_sq, last_step, rows, grad.detach().to(weight.dtype), step,
            lr, betas[0], betas[1], eps, lazy,
        )  # fmt: skip


def _check_data(
    weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, last_step: Tensor, rows: Tensor, grad: Tensor, step: Tensor,
    *_: float,
) -> None:  # fmt: skip
    count = weight.shape[0]
    _checks.in_range("rows", rows, count, f"0 to {count - 1}", error=IndexError)
    if rows.unique().shape[0] < rows.shape[0]:
        seen: dict[int, int] = {}
        for i, row in enumerate(rows.tolist()):
            if row in seen:
                raise ValueError(
                    f"rows[{i}] is {row} again, as rows[{seen[row]}]: sum the gradients of equal rows first"
                )
            seen[row] = i
    now = int(step)
    if now < 1:
        raise ValueError(f"step is {now}, expected at least 1")
    _checks.in_range("last_step", last_step, now, f"0 to {now - 1}: step is {now}")


def _fake(*_: Any) -> None:
    return None


_WRITTEN = ("weight", "exp_avg", "exp_avg_sq", "last_step")
_adam_rows = register("adam_rows", fake=_fake, check=_check_data, mutates=_WRITTEN)
