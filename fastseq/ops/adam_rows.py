"""Adam for an embedding table of which a step touches few rows: equal to dense Adam, at the cost of those rows."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register

COLUMNS = 8  # of a history: rate, scale, lead, then the sums of w (c - scale) ** j for j = 0 ... 4
TOLERANCE = 1e-8  # error that the expansion may have, relative to what the missed steps move
NEGLIGIBLE = 1e-16  # a missed step whose weight has decayed to this part changes no sum
LEADS = 4096  # steps that have a lead of their own; later ones have the last one's


def adam_rows(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    last_step: Tensor,
    history: Tensor,
    clock: Tensor,
    rows: Tensor | None = None,
    grad: Tensor | None = None,
    count: Tensor | None = None,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> None:
    """Brings rows up to date, in place, and with ``grad`` takes the step that the clock stands at.

    A row without a gradient still moves in dense Adam, by its decaying momentum. Here it stays as it lies until it is
    asked for. Then its missed steps are made up for at once: moments exactly, the weight by an expansion (below). A row
    that never had a gradient has moments of zero: it does not move.

    With s = sqrt(v) and m, v the moments after step t0, the steps t0 + k move the weight by
    m * sum_k w_k / (s + eps * c_k), where c_k = sqrt(1 - beta2 ** (t0 + k)) / beta2 ** (k / 2) and
    w_k = lr * (beta1 / sqrt(beta2)) ** k * sqrt(1 - beta2 ** (t0 + k)) / (1 - beta1 ** (t0 + k)), lr that of the step.
    w_k decays while c_k hardly changes, so the sum is expanded about the mean of c_k to the fourth moment. While c_k
    changes fast, in the first hundreds of steps, the first ``lead`` missed steps are summed as they are.

    Args:
        weight, exp_avg, exp_avg_sq: [V, d], float32 or float64, of one dtype; updated.
        last_step: int32 [V], the step that a row is up to date with, 0 where it never had a gradient; updated.
        history, clock: what past steps have in common, as ``new_history`` makes them and ``begin_step`` and
            ``end_step`` keep them. With a gradient call this between the two, otherwise not.
        rows: int64 [R], ascending and distinct; None: all.
        grad: [R, d], of weight's dtype; None: no step, rows are only brought up to date.
        count: int64 [1], how many of ``rows`` and ``grad`` are valid, from the first; None: all.
        betas, eps: as torch.optim.Adam; betas[0] < sqrt(betas[1]), else w_k grows.

    Raises:
        ValueError: for a shape, dtype, beta or eps that does not fit, rows that do not ascend, or a ``last_step`` that
            the history does not reach.
        IndexError: for a row that is out of range (these two on the CPU, or with FASTSEQ_CHECK=1).

    Source: Kingma & Ba, "Adam", ICLR 2015; the sum over missed steps: docs/scale.md, "RowAdam".
    """
    if weight.dtype not in (torch.float32, torch.float64) or weight.dim() != 2:
        raise ValueError(f"weight is {weight.dtype} {list(weight.shape)}, expected torch.float32 or float64 [V, d]")
    n_rows, width = weight.shape
    if rows is not None:
        _checks.ids("rows", rows)
    shapes: list[tuple[str, Tensor | None, torch.dtype, tuple[int, ...]]] = [
        ("exp_avg", exp_avg, weight.dtype, (n_rows, width)),
        ("exp_avg_sq", exp_avg_sq, weight.dtype, (n_rows, width)),
        ("last_step", last_step, torch.int32, (n_rows,)),
        ("history", history, torch.float64, (history.shape[0] if history.dim() else 0, COLUMNS)),
        ("clock", clock, torch.int64, (2,)),
        ("grad", grad, weight.dtype, (n_rows if rows is None else rows.shape[0], width)),
        ("count", count, torch.int64, (1,)),
    ]
    for name, x, dtype, shape in shapes:
        if x is not None and (x.dtype != dtype or x.shape != shape):
            raise ValueError(f"{name} is {x.dtype} {list(x.shape)}, expected {dtype} {list(shape)}")
    if count is not None and rows is None:
        raise ValueError("count is given without rows")
    check_betas(betas)
    _checks.number("eps", eps, 0.0)
    for name, x in (("weight", weight), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq), ("last_step", last_step)):
        if any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True)):
            raise ValueError(f"{name} has elements that share memory, which cannot be updated: pass {name}.clone()")
    with torch.no_grad():
        _adam_rows(
            weight.detach(), exp_avg, exp_avg_sq, last_step, history, clock, rows,
            None if grad is None else grad.detach(), count, *betas, eps,
        )  # fmt: skip


def check_betas(betas: tuple[float, float]) -> None:
    """Raises ValueError unless momentum decays faster than the root of the second moment."""
    pair = isinstance(betas, tuple | list) and len(betas) == 2 and all(isinstance(x, int | float) for x in betas)
    if not (pair and 0.0 <= betas[0] < 1.0 and 0.0 <= betas[1] < 1.0):
        raise ValueError(f"betas is {betas!r}, expected two numbers, at least 0 and below 1")
    if betas[0] >= math.sqrt(betas[1]):
        raise ValueError(
            f"betas is {betas}: rows need betas[0] < sqrt(betas[1]), else the moves of an untouched row grow from step "
            "to step; lower betas[0], or train with dense gradients"
        )


def new_history(betas: tuple[float, float], steps: int, device: torch.device, step: int = 0) -> tuple[Tensor, Tensor]:
    """A history (float64 [rows, 8]) with room for ``steps`` more, and the clock (int64 [2]): ``step`` steps are done.

    Row clock[1] + t of the history belongs to step t. It takes 64 bytes. The first rows are there so that ``end_step``
    always goes over as many.
    """
    window = _constants(betas, device)[0].shape[0]
    history = torch.zeros(window + 1 + steps, COLUMNS, dtype=torch.float64, device=device)
    clock = torch.tensor([step, window - step], device=device)
    if step > 0:  # rows may be up to date with it
        clock[:1] -= 1
        begin_step(history, clock, 0.0, betas)
    return history, clock


def begin_step(history: Tensor, clock: Tensor, lr: float | Tensor, betas: tuple[float, float]) -> None:
    """Lets the clock go on by one step, whose learning rate is ``lr``. In place; may be captured."""
    leads = _constants(betas, history.device)[2]
    clock[:1] += 1
    step = clock[:1]
    scale = (1.0 - torch.pow(betas[1], step.double())).sqrt()
    rate = lr * scale / (1.0 - torch.pow(betas[0], step.double()))
    lead = leads.index_select(0, step.clamp(max=LEADS - 1))
    nothing = torch.zeros(COLUMNS - 3, dtype=torch.float64, device=history.device)
    history.index_copy_(0, clock.sum(0, keepdim=True), torch.cat([rate, scale, lead, nothing])[None])


def end_step(history: Tensor, clock: Tensor, betas: tuple[float, float]) -> None:
    """Adds the step that has begun to the sums of the steps before it. In place; may be captured."""
    decay, spread, _, back, powers = _constants(betas, history.device)
    place = clock.sum(0, keepdim=True)
    rate, scale = history.index_select(0, place)[:, :2].unbind(1)
    before = place - back
    distance = scale * spread - history[:, 1].index_select(0, before)
    history[:, 3:].index_add_(0, before, rate[:, None] * decay * distance[:, None] ** powers)


def restart(history: Tensor, clock: Tensor, betas: tuple[float, float]) -> int:
    """Forgets the steps that no row needs any more, after all rows were brought up to date; the room there is now."""
    window = _constants(betas, history.device)[0].shape[0]
    now = history.index_select(0, clock.sum(0, keepdim=True))
    history.zero_()
    history[window] = now[0]
    clock[1:] = window - clock[:1]
    return history.shape[0] - window - 1


@functools.cache
def _constants(betas: tuple[float, float], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What a step adds to the sums of each of the steps k before it, and the leads.

    Returns:
        For k = W ... 1: (beta1 / sqrt(beta2)) ** k, float64 [W, 5], a column for each power, and beta2 ** (-k / 2),
        float64 [W]; the lead of a row that is up to date with step t, float64 [LEADS]; k; the powers 0 ... 4, float64.
    """
    decay, spread = betas[0] / math.sqrt(betas[1]), 1.0 / math.sqrt(betas[1])
    window = math.ceil(math.log(NEGLIGIBLE) / math.log(decay)) if decay > 0.0 else 1
    back = torch.arange(window, 0, -1)
    leads, settled = _leads(betas)
    powers = torch.arange(5, dtype=torch.float64)
    parts = (
        (decay ** back.double())[:, None] * (powers == 0 if not settled else 1.0),
        spread ** (back.double() if settled else 0.0 * back),  # of powers that are left out, but for overflow
        torch.tensor(leads, dtype=torch.float64),
        back,
        powers,
    )
    return tuple(part.to(device) for part in parts)  # type: ignore[return-value]


def _leads(betas: tuple[float, float]) -> tuple[list[int], bool]:
    """How many missed steps are summed as they are for a row up to date with step t, and if the others are expanded.

    The weights decay like exp(-k / u), u = -1 / log(beta1 / sqrt(beta2)), while log(c_k) grows by
    -log(beta2) / 2 / (1 - beta2 ** t) a step. So c_k spreads about its mean by a share ``spread`` of u such steps, and
    the first term that the expansion leaves out is at most 44 spread ** 5, 44 being that distribution's fifth moment.
    What comes after k steps counts (beta1 / sqrt(beta2)) ** k. Where c_k never settles, nothing is expanded.
    """
    decay = betas[0] / math.sqrt(betas[1])
    if decay == 0.0:
        return [0] * LEADS, True
    growth = -math.log(betas[1]) / 2.0 / -math.log(decay)
    settled = growth <= 0.1

    def error(step: int, k: int) -> float:
        left_out = 44.0 * (growth / -math.expm1((step + k) * math.log(betas[1]))) ** 5 if settled else 1.0
        return min(1.0, left_out) * decay**k

    leads = [0] * LEADS
    k = math.ceil(math.log(TOLERANCE) / math.log(decay))
    for step in range(LEADS - 1, 0, -1):  # at most one more than at the next step
        k += 1
        while k > 0 and error(step, k - 1) <= TOLERANCE:
            k -= 1
        leads[step] = k
    return leads, settled


def _check_data(
    weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, last_step: Tensor, history: Tensor, clock: Tensor,
    rows: Tensor | None, grad: Tensor | None, count: Tensor | None, *_: float,
) -> None:  # fmt: skip
    n_rows = weight.shape[0]
    step, offset = clock.tolist()
    least = 1 if grad is None else 0
    if not 1 - least <= step < 2**31 or not 0 < step + offset < history.shape[0]:
        expected = f"at least {1 - least} and a history with more than {step + offset} rows"
        raise ValueError(f"clock[0] is {step}, expected {expected}, not {history.shape[0]}: new_history makes both")
    if rows is not None:
        if count is not None:
            if not 0 <= int(count) <= rows.shape[0]:
                raise ValueError(f"count is {int(count)}, expected 0 to {rows.shape[0]}")
            rows = rows[: int(count)]
        _checks.in_range("rows", rows, n_rows, f"0 to {n_rows - 1}", error=IndexError)
        falls = (rows.diff() <= 0).nonzero()
        if falls.shape[0]:
            i = int(falls[0]) + 1
            raise ValueError(
                f"rows[{i}] is {int(rows[i])} after {int(rows[i - 1])}, expected ascending and distinct: sum the "
                "gradients of equal rows and sort"
            )
    done = step - (1 - least)
    known = last_step if rows is None else last_step[rows]
    wrong = ((known > done) | (known < 0) | ((known > 0) & (known + offset < 0))).nonzero()
    if wrong.shape[0]:
        row = int(wrong[0]) if rows is None else int(rows[wrong[0]])
        raise ValueError(
            f"last_step[{row}] is {int(last_step[row])}, expected 0 or {max(1, -offset)} to {done}: clock[0] is {step}"
        )


def _fake(*_: Any) -> None:
    return None


_WRITTEN = ("weight", "exp_avg", "exp_avg_sq", "last_step")
_adam_rows = register("adam_rows", fake=_fake, check=_check_data, mutates=_WRITTEN)
