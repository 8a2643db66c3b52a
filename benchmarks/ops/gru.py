"""gru beside torch.nn.GRU on a packed batch (cuDNN's on a GPU), input gates included on both sides."""

from __future__ import annotations

import warnings
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastseq.ops import gru

from .case import (
    BATCHES,
    BFLOAT16,
    EVENTS,
    FLOAT16,
    FLOAT32,
    LARGE,
    TF32,
    WIDTH,
    Case,
    Spec,
    described,
    dtypes_of,
    lengths_of,
    offsets_of,
)

SHAPE, HIDDEN = "ml-1m L=50", 128
ROUNDING = {TF32: 1e-2, BFLOAT16: 5e-2, FLOAT16: 1e-2}  # errors allowed: the state is rounded again at every step
NO_COMPILE = "torch.compile does not trace nn.GRU: a graph break around the call, which is eager's again"


def packing(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Rows of the jagged batch in the order of a packed one (step by step; lengths descend), and its batch sizes."""
    starts = offsets_of(lengths)[:-1].long()
    sizes = [sum(length > step for length in lengths) for step in range(max(lengths))]
    rows = [starts[:size] + step for step, size in enumerate(sizes)]
    return torch.cat(rows), torch.tensor(sizes)


def packed_gru(packed: PackedSequence, weight_ih: Tensor, weight_hh: Tensor) -> Tensor:
    """What nn.GRU(bias=False) calls for a packed batch, on weights that are arguments; rows in packed order."""
    zero = packed.data.new_zeros(1, int(packed.batch_sizes[0]), weight_hh.shape[1])
    training = torch.is_grad_enabled()  # cuDNN keeps what its backward needs only then
    weights = [weight_ih, weight_hh]
    with warnings.catch_warnings():  # of weights that are not one piece, as a module's are: a copy of 400 KB
        warnings.filterwarnings("ignore", message="RNN module weights are not part of")
        return torch.gru(packed.data, packed.batch_sizes, zero, weights, False, 1, 0.0, training, False)[0]


def case(device: torch.device, shape: str = SHAPE, targets: int = EVENTS, hidden: int = HIDDEN) -> Case:
    return jagged(device, f"{described(shape, targets)}, H={hidden}", lengths_of(shape, targets), WIDTH, hidden)


def jagged(device: torch.device, shape: str, lengths: list[int], width: int, hidden: int) -> Case:
    events, (rows, sizes) = sum(lengths), packing(lengths)
    offsets, back, rows = offsets_of(lengths, device), rows.argsort().to(device), rows.to(device)

    def fastseq(p: float, x: Tensor, weight_ih: Tensor, weight_hh: Tensor) -> Tensor:
        return gru(F.linear(x, weight_ih), weight_hh, offsets, max_len=max(lengths))

    def eager(p: float, x: Tensor, weight_ih: Tensor, weight_hh: Tensor) -> Tensor:
        return packed_gru(PackedSequence(x[rows], sizes), weight_ih, weight_hh)[back]

    leaves = [
        torch.randn(events, width, device=device),
        torch.randn(3 * hidden, width, device=device) / 10,
        torch.randn(3 * hidden, hidden, device=device) / 10,
    ]
    elements, products = gru_work(events, width, hidden)
    return Case(
        "gru", shape, {"fastseq": fastseq, "eager": eager}, leaves, torch.randn(events, hidden, device=device),
        no_compile=NO_COMPILE, tolerances=ROUNDING, products=True, indices=offsets.nbytes, elements=elements,
        flops=products,
    )  # fmt: skip


def gru_work(events: int, width: int, hidden: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Elements and FLOPs of both products, (forward, backward). The steps' latency, which decides, is not in them."""
    weights, products = 3 * hidden * (width + hidden), 6 * events * hidden * (width + hidden)
    forward = events * (width + hidden) + weights
    return (forward, forward + events * (width + hidden) + weights), (products, 2 * products)


def suite(device: str) -> list[Spec]:
    if device == "cpu":
        return [Spec("gru", case, [FLOAT32])]
    shapes = [(shape, targets) for targets in BATCHES for shape in (SHAPE, "beauty L=50")] + [(LARGE, EVENTS)]
    return [Spec("gru", partial(case, shape=shape, targets=n), dtypes_of(True)) for shape, n in shapes]


def tiny(device: torch.device) -> list[Case]:
    return [jagged(device, "tiny", [4, 3, 1], 8, 16)]
