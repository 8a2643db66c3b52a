"""Adam on embedding rows on the CPU: csrc/adam_rows.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import call, prepared


def adam_rows(weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, last_step: Tensor, *update: Any) -> None:
    rows, grad, step, *settings = update
    updated = (weight, exp_avg, exp_avg_sq, last_step)
    buffers = [*(prepared(tensor) for tensor in updated[:3]), last_step.contiguous()]
    call(_C.adam_rows, *buffers, rows.contiguous(), prepared(grad), int(step), *settings)
    for tensor, buffer in zip(updated, buffers, strict=True):
        if tensor.data_ptr() != buffer.data_ptr():  # a half type or a stride that C++ does not take
            tensor.copy_(buffer)
        else:
            torch.autograd.graph.increment_version(tensor)
