"""The objective: a main loss over hidden states, and WarpRec's L2 term over the embeddings a batch uses.

Names and formulas of the sampled losses: ops/sampled_loss.py. The full softmax: ops/cross_entropy.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..ops.sampled_loss import needs_log_q


def summed_loss(
    h: Tensor,
    item_weight: Tensor,
    targets: Tensor,
    negatives: Tensor | None,
    log_q: Tensor | None,
    *,
    loss: str,
    beta: float,
    divisor: float,
) -> Tensor:
    """The main loss summed over the targets, divided by ``divisor``.

    Args:
        h: [N, d], one hidden state per target.
        item_weight: [V + 1, d]. The last row, padding, competes in cross-entropy and gets its gradient there, and
            has none as a target or negative, as nn.Embedding(padding_idx) gives none.
        targets: int64 [N].
        negatives, log_q: [N, K] or shared [S]; None with cross-entropy.
        loss: one of ``hyperparameters.LOSSES``.
        beta: of gBCE.
    """
    if loss == "cross_entropy":
        summed = ops.linear_cross_entropy(h, item_weight, targets, reduction="sum")
        return summed if divisor == 1 else summed / divisor
    assert negatives is not None
    return ops.sampled_loss(
        h,
        item_weight,
        targets,
        negatives,
        loss=loss,
        log_q=log_q if needs_log_q(loss) else None,
        beta=beta,
        reduction="sum",
        padding_idx=item_weight.shape[0] - 1,
        divisor=divisor,
    )


def row_counts(weight: Tensor, ids: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    """How often each row of ``weight`` [R, d] is used: float [R].

    Args:
        ids: pairs of row numbers (any shape) and how often each counts (None: once), that shape; a number below 0
            counts 0 times.
    """
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    counts = torch.zeros(weight.shape[0], dtype=dtype, device=weight.device)
    for rows, times in ids:
        rows = rows.reshape(-1)
        if times is None:
            counts.index_add_(0, rows, torch.ones(rows.shape, dtype=dtype, device=weight.device))
        else:
            counts.index_add_(0, rows.clamp(min=0), times.reshape(-1).to(dtype))
    return counts


def sum_of_squares(weight: Tensor, counts: Tensor, padding_idx: int | None = None) -> Tensor:
    """Σ over rows of counts · ‖row‖²: every embedding of a batch squared, without gathering one of them.

    Counts are whole numbers, so their sums are exact in any order. Row ``padding_idx`` counts in the value and gets
    no gradient.
    """
    squares = torch.linalg.vector_norm(weight, dim=1, dtype=counts.dtype).square()
    if padding_idx is not None:
        is_padding = torch.arange(weight.shape[0], device=weight.device) == padding_idx
        squares = torch.where(is_padding, squares.detach(), squares)
    return counts @ squares
