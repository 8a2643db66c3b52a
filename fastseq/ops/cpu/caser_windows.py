"""Caser's convolutions on the CPU: csrc/caser_windows.cpp and csrc/caser_windows_backward.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from ._arrays import call, prepared


def caser_windows(
    x: Tensor, offsets: Tensor, sequences: Tensor, stops: Tensor, *weights: Tensor
) -> tuple[Tensor, Tensor]:
    source, *floats = map(prepared, (x, *weights))
    _, bias_h, weight_v, *_ = weights
    indices = [a.contiguous() for a in (offsets, sequences, stops)]
    size, horizontal = stops.shape[0], bias_h.numel()
    out = torch.empty(size, weight_v.shape[0] * x.shape[1] + horizontal, dtype=source.dtype)
    position = torch.empty(size, horizontal, dtype=torch.int32)
    call(_C.caser_windows, source, *indices, *floats, out, position)
    return out.to(x.dtype), position


def caser_windows_backward(
    grad: Tensor, x: Tensor, offsets: Tensor, sequences: Tensor, stops: Tensor, *weights_and_position: Tensor
) -> tuple[Tensor, ...]:
    *weights, position = weights_and_position
    source, *floats = map(prepared, (x, *weights))
    indices = [a.contiguous() for a in (offsets, sequences, stops)]
    grads = [torch.zeros_like(a) for a in (source, *floats)]
    call(_C.caser_windows_backward, prepared(grad), source, *indices, *floats, position.contiguous(), *grads)
    return tuple(g.to(a.dtype) for g, a in zip(grads, (x, *weights), strict=True))
