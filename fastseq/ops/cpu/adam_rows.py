"""Adam on embedding rows on the CPU: csrc/adam_rows.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import call, optional, prepared


def adam_rows(
    weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, last_step: Tensor, history: Tensor, clock: Tensor,
    rows: Tensor | None, grad: Tensor | None, count: Tensor | None, *settings: Any,
) -> None:  # fmt: skip
    if rows is not None:
        valid = rows.shape[0] if count is None else int(count)
        if not 0 <= valid <= rows.shape[0]:
            raise ValueError(f"count is {valid}, expected 0 to {rows.shape[0]}")
        rows = rows[:valid].contiguous()
        grad = None if grad is None else grad[:valid]
    updated = (weight, exp_avg, exp_avg_sq, last_step)
    buffers = [tensor.contiguous() for tensor in updated]
    call(_C.adam_rows, *buffers, prepared(history), clock.contiguous(), rows, optional(grad), *settings)
    for tensor, buffer in zip(updated, buffers, strict=True):
        if tensor.data_ptr() != buffer.data_ptr():  # was not contiguous
            tensor.copy_(buffer)
        else:
            torch.autograd.graph.increment_version(tensor)
