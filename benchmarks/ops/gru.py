"""gru beside torch.nn.GRU on a packed batch (cuDNN's on a GPU), input gates included on both sides."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import gru

from .case import BFLOAT16, FLOAT16, PRODUCTS, TF32, WIDTH, Batch, Case, Cases, batches

HIDDEN = 128
ROUNDING = {TF32: 1e-2, BFLOAT16: 5e-2, FLOAT16: 1e-2}  # errors allowed: the state is rounded again at every step
NO_COMPILE = "torch.compile does not trace nn.GRU: a graph break around the call, which is eager's again"


def packed_gru(batch: Batch, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What nn.GRU(bias=False) calls for a packed batch, on rows of the jagged one and weights that are arguments."""
    steps = [[i for i, length in enumerate(batch.lengths) if length > step] for step in range(batch.longest)]
    starts = batch.starts
    order = torch.tensor([starts[i] + step for step, sequences in enumerate(steps) for i in sequences])
    sizes, rows, back = torch.tensor([len(step) for step in steps]), order.to(device), order.argsort().to(device)

    def packed(x: Tensor, weight_ih: Tensor, weight_hh: Tensor) -> Tensor:
        zero = x.new_zeros(1, len(batch.lengths), weight_hh.shape[1])
        training = torch.is_grad_enabled()  # cuDNN keeps what its backward needs only then
        with warnings.catch_warnings():  # of weights that are not one piece, as a module's are: a copy of 400 KB
            warnings.filterwarnings("ignore", message="RNN module weights are not part of")
            weights = [weight_ih, weight_hh]
            return torch.gru(x[rows], sizes, zero, weights, False, 1, 0.0, training, False)[0][back]

    return packed


def weights_of(device: torch.device, width: int, hidden: int) -> list[Tensor]:
    return [torch.randn(3 * hidden, n, device=device) / 10 for n in (width, hidden)]


def case(device: torch.device, batch: Batch, width: int = WIDTH, hidden: int = HIDDEN) -> Case:
    offsets, packed = batch.offsets(device), packed_gru(batch, device)

    def fastseq(p: float, x: Tensor, weight_ih: Tensor, weight_hh: Tensor) -> Tensor:
        return gru(F.linear(x, weight_ih), weight_hh, offsets, max_len=batch.longest)

    products = 6 * batch.events * hidden * (width + hidden)  # the steps' latency, which decides, is not in them
    return Case(
        "gru", f"{batch}, H={hidden}", {"fastseq": fastseq, "eager": lambda p, *leaves: packed(*leaves)},
        [torch.randn(batch.events, width, device=device), *weights_of(device, width, hidden)],
        torch.randn(batch.events, hidden, device=device), no_compile=NO_COMPILE, tolerances=ROUNDING, products=True,
        indices=offsets.nbytes, flops=(products, 2 * products),
    )  # fmt: skip


CASES = [
    Cases(
        "gru", case, "batch", cpu=batches("cpu", "ml-1m L=50"), cuda=batches("cuda", "ml-1m L=50", "beauty L=50"),
        tiny=[(Batch("tiny", [4, 3, 1]), 8, 16)], cuda_dtypes=PRODUCTS,
    )
]  # fmt: skip
