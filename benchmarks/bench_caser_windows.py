"""caser_windows forward and backward beside one nn.Conv2d per height over one padded window per history.

    pytest benchmarks/bench_caser_windows.py --benchmark-only --benchmark-group-by=group

    fastseq  the op
    conv2d   WarpRec's form: windows [N, 1, L, d], conv2d, ReLU and max_pool1d for each of the L heights

The seed's sizes: d 64, 8 horizontal filters of each height, 4 vertical. "shared" histories come from training windows
of stride L with context, "per target" is one history for each sequence. Both must agree, gradients included, before
they are timed. Threads: OMP_NUM_THREADS.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import caser_windows, record_served

D, N_H, N_V, TARGETS = 64, 8, 4, 1024
SHAPES = [(20, "shared"), (20, "per target"), (50, "shared"), (50, "per target")]


def fastseq(
    x: Tensor, offsets: Tensor, sequences: Tensor, stops: Tensor, padding_row: Tensor, weights: tuple[Tensor, ...]
) -> Tensor:
    return caser_windows(x, offsets, sequences, stops, *weights, padding_row)


def conv2d(
    x: Tensor, offsets: Tensor, sequences: Tensor, stops: Tensor, padding_row: Tensor, weights: tuple[Tensor, ...]
) -> Tensor:
    weight_h, bias_h, weight_v, bias_v = weights
    length = len(bias_h)
    images = x[stops[:, None] + torch.arange(-length, 0)][:, None]  # every history is full here
    outputs = [F.conv2d(images, weight_v[:, None, :, None], bias_v).flatten(1)]
    for height in range(1, length + 1):
        first = height * (height - 1) // 2
        kernel = weight_h[first : first + height].transpose(0, 1)[:, None]
        convolved = F.conv2d(images, kernel, bias_h[height - 1]).squeeze(3).relu()
        outputs.append(F.max_pool1d(convolved, convolved.shape[2]).squeeze(2))
    return torch.cat(outputs, dim=1)


def inputs(length: int, kind: str) -> tuple[list[Any], tuple[Tensor, ...], Tensor]:
    torch.manual_seed(0)
    counted = length if kind == "shared" else 1
    n_sequences = TARGETS // counted
    size = length + counted - 1
    offsets = torch.arange(n_sequences + 1) * size
    stops = (offsets[1:, None] - torch.arange(counted)).flatten()
    sequences = torch.arange(n_sequences).repeat_interleave(counted)
    x = torch.randn(int(offsets[-1]), D) * 0.1
    shapes = [(length * (length + 1) // 2, N_H, D), (length, N_H), (N_V, length), (N_V,)]
    weights = tuple((torch.randn(shape) * 0.05).requires_grad_() for shape in shapes)
    upstream = F.dropout(torch.randn(len(stops), N_V * D + length * N_H), 0.5)
    arguments = [x.requires_grad_(), offsets.int(), sequences, stops, torch.zeros(D)]
    return arguments, weights, upstream


@pytest.mark.parametrize("name", ["fastseq", "conv2d"])
@pytest.mark.parametrize(("length", "kind"), SHAPES)
def test_caser_windows(benchmark: Any, length: int, kind: str, name: str) -> None:
    arguments, weights, upstream = inputs(length, kind)
    leaves = (arguments[0], *weights)

    def step(function: Any) -> tuple[Tensor, ...]:
        output = function(*arguments, weights)
        return output.detach(), *torch.autograd.grad(output, leaves, upstream)

    with record_served() as calls:
        ours = step(fastseq)
    assert {backend for _, backend in calls} == {"cpu"}
    for x, y in zip(ours, step(conv2d), strict=True):
        assert (x - y).norm() <= 1e-2 * y.norm()  # rounding moves a maximum here and there
    benchmark.group = f"caser_windows L={length} {kind}"
    benchmark.extra_info["targets"] = len(upstream)
    benchmark.pedantic(step, args=({"fastseq": fastseq, "conv2d": conv2d}[name],), rounds=5, warmup_rounds=1)
