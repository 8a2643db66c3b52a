"""caser_windows beside one nn.Conv2d per height over one padded window per history (cuDNN's on a GPU).

"shared" histories come from training windows of stride L with context, "per target" is one history for each sequence.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import caser_windows

from .case import BATCHES, BFLOAT16, EVENTS, FLOAT16, FLOAT32, PRODUCTS, TF32, Case, Cases

D, N_H, N_V = 64, 8, 4
SHAPES = [(20, "shared"), (20, "per target"), (50, "shared")]
CPU_TARGETS = {20: EVENTS, 50: EVENTS // 4}  # eager takes seconds a step at L = 50


def no_compile(length: int, kind: str) -> str:
    """Why torch.compile is left out."""
    if length > 20:
        return f"{length} convolutions of different sizes take torch.compile minutes; L = 20 is compiled"
    return "compiled as shared: the same padded windows" if kind == "per target" else ""


def case(device: torch.device, length: int, kind: str, targets: int, d: int = D) -> Case:
    counted = length if kind == "shared" else 1
    n_sequences = targets // counted
    size = length + counted - 1  # so that every history is full
    offsets = torch.arange(n_sequences + 1, dtype=torch.int32, device=device) * size
    stops = (offsets[1:, None].long() - torch.arange(counted, device=device)).flatten()
    sequences = torch.arange(n_sequences, device=device).repeat_interleave(counted)
    padding_row, events = torch.zeros(d, device=device), n_sequences * size

    def fastseq(p: float, x: Tensor, weight_h: Tensor, bias_h: Tensor, weight_v: Tensor, bias_v: Tensor) -> Tensor:
        row = padding_row.to(x.dtype)
        return caser_windows(x, offsets, sequences, stops, weight_h, bias_h, weight_v, bias_v, row)

    def eager(p: float, x: Tensor, weight_h: Tensor, bias_h: Tensor, weight_v: Tensor, bias_v: Tensor) -> Tensor:
        images = x[stops[:, None] + torch.arange(-length, 0, device=x.device)][:, None]
        outputs = [F.conv2d(images, weight_v[:, None, :, None], bias_v).flatten(1)]
        for height in range(1, length + 1):
            first = height * (height - 1) // 2
            kernel = weight_h[first : first + height].transpose(0, 1)[:, None]
            convolved = F.conv2d(images, kernel, bias_h[height - 1]).squeeze(3).relu()
            outputs.append(F.max_pool1d(convolved, convolved.shape[2]).squeeze(2))
        return torch.cat(outputs, dim=1)

    taps, n = length * (length + 1) // 2, len(stops)
    shapes = [(taps, N_H, d), (length, N_H), (N_V, length), (N_V,)]
    # Every row times every tap, or every place of every window, whichever is less; one place is the maximum.
    horizontal = 2 * N_H * d * min(events * taps, n * length * (length + 1) * (length + 2) // 6)
    vertical = 2 * n * N_V * length * d
    return Case(
        "caser_windows", f"L={length}, {kind}, {n} targets", {"fastseq": fastseq, "eager": eager},
        [torch.randn(events, d, device=device) * 0.1, *(torch.randn(s, device=device) * 0.05 for s in shapes)],
        torch.randn(n, N_V * d + length * N_H, device=device),
        # Rounding moves a maximum here and there, and its gradient to another row.
        tolerances={FLOAT32: 1e-2, TF32: 5e-2, BFLOAT16: 3e-2, FLOAT16: 2e-2}, moved=1e-2,
        no_compile=no_compile(length, kind), products=True, indices=16 * n,
        flops=(horizontal + vertical, 2 * (2 * n * N_H * taps * d + vertical)),
    )  # fmt: skip


CASES = [
    Cases(
        "caser_windows", case, "length kind targets",
        cpu=[(length, kind, CPU_TARGETS[length]) for length, kind in SHAPES],
        cuda=[(*shape, targets) for targets in BATCHES for shape in SHAPES] + [(200, "shared", EVENTS)],
        tiny=[(3, "shared", 6, 8), (3, "per target", 4, 8)], cuda_dtypes=PRODUCTS,
    )
]  # fmt: skip
