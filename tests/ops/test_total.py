"""Sums whose bits do not depend on threads, and what reduces by them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastseq import ops
from fastseq.ops._total import SPAN, total

from .backends import check_same_on_threads

ROWS = 40_000  # torch divides a sum among threads from 32,768 on


@pytest.mark.parametrize("rows", [0, 1, SPAN - 1, SPAN, SPAN + 1, ROWS])
def test_total_is_the_sum_and_has_its_gradient(rows: int) -> None:
    x = torch.arange(rows, dtype=torch.float64).requires_grad_()
    total(x).backward()
    assert total(x).item() == rows * (rows - 1) / 2
    assert torch.equal(x.grad, torch.ones(rows, dtype=torch.float64))


def sampled(h: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return ops.sampled_loss(h, weight, targets, targets.flip(0).unsqueeze(1), loss="bpr")


def full(h: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return ops.linear_cross_entropy(h, weight, targets)


@pytest.mark.parametrize("loss", [sampled, full])
def test_a_loss_of_many_rows_has_the_same_bits_for_any_number_of_threads(loss: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    h, weight = (torch.randn(rows, 8, generator=generator) for rows in (ROWS, 50))
    targets = torch.randint(50, (ROWS,), generator=generator)
    check_same_on_threads(lambda: [loss(x, weight, targets) for x in (h, h.clone().requires_grad_())])
