"""caser_windows on the CPU beside one nn.Conv2d per height over one padded window per history.

    pytest benchmarks/bench_caser_windows.py --benchmark-only

"shared" histories come from training windows of stride L with context, "per target" is one history for each sequence.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import DIRECTIONS, EVENTS, IMPLEMENTATIONS, measure
from torch import Tensor

from fastseq.ops import caser_windows

D, N_H, N_V = 64, 8, 4
SHAPES = [(20, "shared"), (20, "per target"), (50, "shared")]
TARGETS = {20: EVENTS, 50: EVENTS // 4}  # eager takes seconds a step at L = 50
NO_COMPILE = {
    (20, "per target"): "compiled as shared: the same padded windows",
    (50, "shared"): "50 convolutions of different sizes take torch.compile minutes; L = 20 is compiled",
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("length", "kind"), SHAPES)
def test_caser_windows(benchmark: Any, length: int, kind: str, direction: str, implementation: str) -> None:
    counted = length if kind == "shared" else 1
    n_sequences = TARGETS[length] // counted
    size = length + counted - 1  # so that every history is full
    offsets = torch.arange(n_sequences + 1, dtype=torch.int32) * size
    stops = (offsets[1:, None].long() - torch.arange(counted)).flatten()
    sequences = torch.arange(n_sequences).repeat_interleave(counted)
    padding_row = torch.zeros(D)

    def fastseq(p: float, x: Tensor, *weights: Tensor) -> Tensor:
        return caser_windows(x, offsets, sequences, stops, *weights, padding_row)

    def eager(p: float, x: Tensor, weight_h: Tensor, bias_h: Tensor, weight_v: Tensor, bias_v: Tensor) -> Tensor:
        images = x[stops[:, None] + torch.arange(-length, 0)][:, None]
        outputs = [F.conv2d(images, weight_v[:, None, :, None], bias_v).flatten(1)]
        for height in range(1, length + 1):
            first = height * (height - 1) // 2
            kernel = weight_h[first : first + height].transpose(0, 1)[:, None]
            convolved = F.conv2d(images, kernel, bias_h[height - 1]).squeeze(3).relu()
            outputs.append(F.max_pool1d(convolved, convolved.shape[2]).squeeze(2))
        return torch.cat(outputs, dim=1)

    shapes = [(length * (length + 1) // 2, N_H, D), (length, N_H), (N_V, length), (N_V,)]
    leaves = [torch.randn(int(offsets[-1]), D) * 0.1, *(torch.randn(shape) * 0.05 for shape in shapes)]
    upstream = torch.randn(len(stops), N_V * D + length * N_H)
    measure(
        benchmark, implementation, {"fastseq": fastseq, "eager": eager}, leaves, upstream,
        op="caser_windows", shape=f"L={length}, {kind}, {len(stops)} targets", direction=direction,
        tolerance=1e-2,  # rounding moves a maximum here and there
        no_compile=NO_COMPILE.get((length, kind), ""),
    )  # fmt: skip
