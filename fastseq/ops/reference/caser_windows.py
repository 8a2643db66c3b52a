"""Plain PyTorch twin of fastseq/ops/caser_windows.py: one padded window per history, one convolution per height."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from ._autograd import vjp


def caser_windows(
    x: Tensor, offsets: Tensor, sequences: Tensor, stops: Tensor, weight_h: Tensor, bias_h: Tensor, weight_v: Tensor,
    bias_v: Tensor, padding_row: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    kind, wide = x.dtype, reduce(torch.promote_types, (weight_h.dtype, weight_v.dtype, padding_row.dtype), x.dtype)
    x, weight_h, bias_h, weight_v, bias_v, padding_row = (
        a.to(wide) for a in (x, weight_h, bias_h, weight_v, bias_v, padding_row)
    )
    length, n_h = bias_h.shape
    size = stops.shape[0]
    starts = torch.maximum(offsets.long()[sequences], stops - length)
    rows = starts[:, None] + torch.arange(length, device=x.device)
    rows = torch.where(rows < stops[:, None], rows, x.shape[0])  # the row after the last one is the padding row
    windows = torch.cat([x, padding_row[None]])[rows]  # [N, L, d]

    outputs = [(torch.einsum("vl,nld->nvd", weight_v, windows) + bias_v[:, None]).flatten(1)]
    positions = []
    for height in range(1, length + 1) if n_h else ():
        first = height * (height - 1) // 2
        patches = windows.unfold(1, height, 1)  # [N, L − height + 1, d, height]
        convolved = torch.einsum("npdj,jfd->nfp", patches, weight_h[first : first + height])
        activated = (convolved + bias_h[height - 1][:, None]).relu()
        pooled, position = max_pool1d(activated, length - height + 1, return_indices=True)
        outputs.append(pooled.flatten(1))
        positions.append(torch.where(pooled > 0, position, -1).int().flatten(1))
    empty = torch.empty(size, 0, dtype=torch.int32, device=x.device)
    return torch.cat(outputs, dim=1).to(kind), torch.cat([empty, *positions], dim=1)


def caser_windows_backward(
    grad: Tensor, x: Tensor, offsets: Tensor, sequences: Tensor, stops: Tensor, weight_h: Tensor, bias_h: Tensor,
    weight_v: Tensor, bias_v: Tensor, padding_row: Tensor, position: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = (x, offsets, sequences, stops, weight_h, bias_h, weight_v, bias_v, padding_row)
    dx, *weights = vjp(lambda *inputs: caser_windows(*inputs)[0], inputs, grad, [0, 4, 5, 6, 7, 8])
    dweight_h, dbias_h, dweight_v, dbias_v, dpadding = weights
    return dx, dweight_h, dbias_h, dweight_v, dbias_v, dpadding
