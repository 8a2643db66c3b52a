"""How an implementation is judged: against float64, relative to PyTorch in the same dtype (docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def relative_error(x: Tensor, reference: Tensor) -> float:
    """‖x − reference‖ / ‖reference‖ in float64; the absolute norm where the reference is zero."""
    reference = reference.double()
    scale = reference.norm().item()
    error = (x.double() - reference).norm().item()
    return error / scale if scale > 0 else error


def assert_as_accurate(x: Tensor, pytorch: Tensor, reference: Tensor, factor: float, name: str) -> None:
    """``x`` errs at most ``factor`` times as much as same-dtype PyTorch, plus two machine epsilons.

    Args:
        x: the implementation's result.
        pytorch: plain PyTorch in the dtype of ``x``.
        reference: plain PyTorch in float64 from the same (rounded) inputs.
        factor: 2 for outputs, 3 for gradients.
    """
    assert x.shape == reference.shape, f"{name}: shape {list(x.shape)}, expected {list(reference.shape)}"
    assert torch.isfinite(x).all(), f"{name}: not finite (an output left unwritten?)"
    bound = factor * relative_error(pytorch, reference) + 2 * torch.finfo(x.dtype).eps
    error = relative_error(x, reference)
    assert error <= bound, f"{name}: error {error:.3g}, at most {bound:.3g} allowed"


def assert_accurate(
    names: Iterable[str],
    results: Iterable[Tensor],
    pytorch: Iterable[Tensor],
    reference: Iterable[Tensor],
    tolerance: float = 1e-14,
) -> None:
    """An output, and after it the gradients, by ``assert_as_accurate``.

    A float64 result differs from the reference only by the order of its sums: relatively by ``tolerance``.
    """
    for index, (name, x, same, exact) in enumerate(zip(names, results, pytorch, reference, strict=True)):
        assert x.dtype == same.dtype and x.shape == exact.shape, name
        if x.dtype == torch.float64:
            assert relative_error(x, exact) <= tolerance, name
        else:
            assert_as_accurate(x.cpu(), same, exact, 3.0 if index else 2.0, name)


def chi_square_z(drawn: Tensor, q: np.ndarray) -> float:
    """Standard deviations of what was drawn from its mean by chi-square (Wilson and Hilferty's approximation).

    Args:
        drawn: ids, int64 of any shape.
        q: probability of each id, float64; none with probability 0 may be drawn.
    """
    counts = np.bincount(drawn.flatten().numpy(), minlength=len(q))
    assert counts[q == 0].sum() == 0
    expected = q[q > 0] * drawn.numel()
    assert expected.min() >= 5
    freedom = len(expected) - 1
    variance = 2 / (9 * freedom)
    statistic = ((counts[q > 0] - expected) ** 2 / expected).sum()
    return float(((statistic / freedom) ** (1 / 3) - (1 - variance)) / variance**0.5)
