"""Losses over a target and sampled negatives: BPR, BCE, gBCE, sampled softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register
from ._total import total

IGNORED = -100  # a target that does not count, as in torch's cross-entropy
LOSSES = ("bpr", "bce", "gbce", "sampled_softmax")
REDUCTIONS = ("none", "mean", "sum")


def needs_log_q(loss: str) -> bool:
    """Whether ``loss`` reads the negatives' probabilities."""
    return loss == "sampled_softmax"


def sampled_loss(
    h: Tensor,
    item_weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    *,
    loss: str = "bpr",
    log_q: Tensor | None = None,
    beta: float = 1.0,
    reduction: str = "mean",
    padding_idx: int | None = None,
    divisor: float = 1,
) -> Tensor:
    """Loss of every row's target against its negatives, straight from hidden states, item table and ids.

    With s⁺ = h·item_weight[target], s⁻ the same for a negative, and K the negatives of the row::

        bpr              mean softplus(s⁻ - s⁺)
        bce              (softplus(-s⁺) + Σ softplus(s⁻)) / (K + 1)
        gbce             (beta softplus(-s⁺) + Σ softplus(s⁻)) / (K + 1)
        sampled_softmax  -s⁺ + log(exp(s⁺) + Σ exp(s⁻ - log_q - log K))

    A negative that equals its row's target is masked out, and K counts what is left. Where none is left the row's
    loss is that of the positive term: 0 for bpr and sampled_softmax. A row whose target is −100 has loss 0 and no
    gradient, and its negatives are not read.

    Args:
        h: [N, d], float32, bfloat16 or float16 (computed in float32), or float64 on the CPU.
        item_weight: [V + 1, d].
        targets: int64 [N], ids from 0 to V, or −100.
        negatives: int64 [N, K], or [S] shared by all rows.
        loss: one of the names above.
        log_q: shape of ``negatives``; log of the probability that one draw gives that item. For sampled_softmax
            only, which needs it (a uniform draw from V items has -log V).
        beta: weight of gbce's positive term, see ``gbce_beta``.
        reduction: "none" ([N]), "sum", or "mean" over the rows that count (0 where there are none).
        padding_idx: a row of ``item_weight`` that gets no gradient, or None.
        divisor: what a "sum" is divided by, as part of the losses where that costs less.

    Returns:
        The loss, float32 (float64 for float64 inputs): a mean of losses has no place in a half type.
        Differentiable in h and item_weight; the gradient of item_weight is dense.

    Raises:
        ValueError: for an unknown name, a shape, type or beta that does not fit, a padding_idx that is no row, or log_q
            missing or superfluous.
        IndexError: on the CPU or with FASTSEQ_CHECK=1, for an id outside 0 … V; names the argument, the row and the
            id. On a GPU without it such a row's loss is NaN (with shared negatives torch's own indexing raises).

    Source: BPR: Rendle et al., UAI 2009. gBCE: Petrov & Macdonald, RecSys 2023. Sampled softmax with logQ: Bengio &
    Senécal, IEEE TNN 2008.
    """
    check_sampled_loss(h, item_weight, targets, negatives, loss, log_q, beta, reduction, padding_idx)
    scale, divisor = division(h.device, reduction, divisor)
    rows: Tensor = _sampled_loss(h, item_weight, targets, negatives, loss, log_q, beta, padding_idx, scale)[0]
    return reduce(rows, targets, reduction, divisor)


def gbce_beta(negatives: int, n_items: int, t: float) -> float:
    """The ``beta`` of gbce: α (t (1 - 1/α) + 1/α) with α = negatives / (n_items - 1).

    Args:
        negatives: K, at least 1.
        n_items: V, at least 2.
        t: calibration, 0 (beta 1, plain BCE) to 1 (beta α, unbiased by the sampling rate).

    Raises:
        ValueError: if one is out of range.

    Source: Petrov & Macdonald, "gSASRec", RecSys 2023, equation 12.
    """
    if negatives < 1:
        raise ValueError(f"negatives is {negatives}, expected at least 1")
    if n_items < 2:
        raise ValueError(f"n_items is {n_items}, expected at least 2")
    if not 0.0 <= t <= 1.0:
        raise ValueError(f"t is {t}, expected 0 <= t <= 1")
    alpha = negatives / (n_items - 1)
    return alpha * (t * (1.0 - 1.0 / alpha) + 1.0 / alpha)


def division(device: torch.device, reduction: str, divisor: float) -> tuple[float, float]:
    """What every loss is multiplied by, and what their sum is divided by: on the CPU 1 and the divisor; elsewhere the
    other way round, as a division of the sum and its derivative are a launch each."""
    check_divisor(reduction, divisor)
    return (1.0, divisor) if device.type == "cpu" else (1.0 / divisor, 1)


def check_divisor(reduction: str, divisor: float) -> None:
    """Raises ValueError for a divisor that is 0, no number, or of anything but a sum."""
    if reduction != "sum" and divisor != 1:
        raise ValueError(f"divisor is {divisor} and reduction is {reduction!r}: it divides a sum")
    _checks.number("divisor", divisor)
    if divisor == 0:
        raise ValueError("divisor is 0, expected another number")


def reduce(rows: Tensor, targets: Tensor, reduction: str, divisor: float) -> Tensor:
    """The mean over the rows that count (0 if there are none), the sum divided by ``divisor``, or the rows."""
    if reduction == "none":
        return rows
    if reduction == "sum":
        return total(rows) if divisor == 1 else total(rows) / divisor
    return total(rows) / (targets != IGNORED).sum().clamp(min=1)


def check_sampled_loss(
    h: Tensor,
    item_weight: Tensor,
    targets: Tensor,
    negatives: Tensor,
    loss: str,
    log_q: Tensor | None,
    beta: float,
    reduction: str,
    padding_idx: int | None,
) -> None:
    """Raises ValueError unless the arguments of ``sampled_loss`` fit together."""
    _checks.number("beta", beta, least=0)
    _checks.floating(h=h, item_weight=item_weight)
    _checks.floating(log_q=log_q)
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}, expected one of {', '.join(LOSSES)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, expected one of {', '.join(REDUCTIONS)}")
    if h.dim() != 2 or item_weight.dim() != 2 or h.shape[1] != item_weight.shape[1]:
        shapes = f"h has shape {list(h.shape)} and item_weight {list(item_weight.shape)}"
        raise ValueError(f"{shapes}, expected [N, d] and [V + 1, d]")
    if targets.shape != h.shape[:1] or targets.dtype != torch.int64:
        expected = f"torch.int64 [{h.shape[0]}]"
        raise ValueError(f"targets is {targets.dtype} {list(targets.shape)}, expected {expected}")
    fits = negatives.dim() == 1 or (negatives.dim() == 2 and negatives.shape[0] == h.shape[0])
    if not fits or negatives.dtype != torch.int64:
        expected = f"torch.int64 [{h.shape[0]}, K] or [S]"
        raise ValueError(f"negatives is {negatives.dtype} {list(negatives.shape)}, expected {expected}")
    if padding_idx is not None and not 0 <= padding_idx < item_weight.shape[0]:
        last = item_weight.shape[0] - 1
        raise ValueError(f"padding_idx is {padding_idx}, expected a row of item_weight, 0 ... {last}, or None")
    if not needs_log_q(loss):
        if log_q is not None:
            raise ValueError(f"log_q is given, but loss {loss!r} has no use for it: leave it out")
    elif log_q is None:
        raise ValueError(f"log_q is None: {loss} needs the log of each negative's probability")
    elif log_q.shape != negatives.shape:
        raise ValueError(f"log_q has shape {list(log_q.shape)}, expected {list(negatives.shape)} as negatives")


def check_sampled_data(item_weight: Tensor, targets: Tensor, negatives: Tensor) -> None:
    """Raises IndexError for an id that is no row of ``item_weight``."""
    items = item_weight.shape[0]
    expected = f"an id from 0 to {items - 1}: item_weight has {items} rows"
    ignored = targets == IGNORED
    _checks.in_range("targets", targets.masked_fill(ignored, 0), items, expected, error=IndexError)
    if negatives.dim() == 2:
        negatives = negatives.masked_fill(ignored[:, None], 0)
    _checks.in_range("negatives", negatives, items, expected, error=IndexError)


def _check_data(h: Tensor, item_weight: Tensor, targets: Tensor, negatives: Tensor, *_: Any) -> None:
    check_sampled_data(item_weight, targets, negatives)


def _fake(h: Tensor, item_weight: Tensor, targets: Tensor, negatives: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(h.dtype, torch.float32)
    rows, width = h.shape
    return (
        h.new_empty(rows, dtype=wide),
        h.new_empty(rows, width, dtype=wide),
        h.new_empty(rows, 1 + negatives.shape[-1], dtype=wide),
    )


# rows [N]: the losses. d_h [N, d] = d rows_i / d h_i and d_scores [N, 1 + K] = d rows_i / d s_ij (the target first), so
# that the backward pass reads the item table no more. All three in float32 or float64.
_sampled_loss = register("sampled_loss", fake=_fake, differentiable=(0, 1), check=_check_data)
