"""gru_sampled_loss beside nn.GRU on a packed batch (cuDNN's on a GPU), a linear layer and the loss in PyTorch."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastseq.ops import gru_sampled_loss

from .case import (
    BATCHES,
    BEAUTY_ITEMS,
    EVENTS,
    FLOAT32,
    LARGE,
    LARGE_ITEMS,
    ML_1M_ITEMS,
    WIDTH,
    Case,
    Spec,
    described,
    dtypes_of,
    lengths_of,
    offsets_of,
)
from .gru import HIDDEN, NO_COMPILE, ROUNDING, SHAPE, gru_work, packed_gru, packing
from .sampled_loss import never_the_target

NEGATIVES = 2
ITEMS = {SHAPE: ML_1M_ITEMS, "beauty L=50": BEAUTY_ITEMS, LARGE: LARGE_ITEMS}


def case(device: torch.device, shape: str = SHAPE, targets: int = EVENTS) -> Case:
    name = f"{described(shape, targets)}, H={HIDDEN}, {NEGATIVES} negatives"
    return jagged(device, name, lengths_of(shape, targets), ITEMS[shape], WIDTH, HIDDEN)


def jagged(device: torch.device, shape: str, lengths: list[int], n_items: int, width: int, hidden: int) -> Case:
    events, (rows, sizes) = sum(lengths), packing(lengths)
    offsets, back, rows = offsets_of(lengths, device), rows.argsort().to(device), rows.to(device)
    targets = torch.randint(0, n_items, (events,), device=device)
    negatives = never_the_target(targets, n_items, NEGATIVES)

    def fastseq(p: float, x: Tensor, w_ih: Tensor, w_hh: Tensor, dense: Tensor, bias: Tensor, table: Tensor) -> Tensor:
        return gru_sampled_loss(
            F.linear(x, w_ih), w_hh, offsets, dense, bias, None, table, targets, negatives,
            max_len=max(lengths), reduction="none",
        )  # fmt: skip

    def eager(p: float, x: Tensor, w_ih: Tensor, w_hh: Tensor, dense: Tensor, bias: Tensor, table: Tensor) -> Tensor:
        h = F.linear(packed_gru(PackedSequence(x[rows], sizes), w_ih, w_hh)[back], dense, bias)
        positive = (h * F.embedding(targets, table)).sum(1, keepdim=True)
        return F.softplus((h[:, None] * F.embedding(negatives, table)).sum(2) - positive).mean(1)

    leaves = [
        torch.randn(events, width, device=device),
        torch.randn(3 * hidden, width, device=device) / 10,
        torch.randn(3 * hidden, hidden, device=device) / 10,
        torch.randn(width, hidden, device=device) / 10,
        torch.randn(width, device=device),
        torch.randn(n_items + 1, width, device=device),
    ]
    (forward, backward), (products, more) = gru_work(events, width, hidden)
    gathered = min(events * (1 + NEGATIVES), n_items) * width
    dense = 2 * events * hidden * width
    return Case(
        "gru_sampled_loss", shape, {"fastseq": fastseq, "eager": eager}, leaves, torch.rand(events, device=device),
        no_compile=NO_COMPILE, tolerances=ROUNDING, products=True, indices=8 * events * (1 + NEGATIVES),
        elements=(forward + gathered, backward + gathered + leaves[-1].numel()),
        flops=(products + dense, more + 2 * dense),
    )  # fmt: skip


def suite(device: str) -> list[Spec]:
    if device == "cpu":
        return [Spec("gru_sampled_loss", case, [FLOAT32])]
    shapes = [(shape, targets) for targets in BATCHES for shape in (SHAPE, "beauty L=50")] + [(LARGE, EVENTS)]
    return [Spec("gru_sampled_loss", partial(case, shape=shape, targets=n), dtypes_of(True)) for shape, n in shapes]


def tiny(device: torch.device) -> list[Case]:
    return [jagged(device, "tiny", [4, 3, 1], 11, 8, 16)]
