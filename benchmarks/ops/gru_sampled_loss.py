"""gru_sampled_loss beside nn.GRU on a packed batch (cuDNN's on a GPU), a linear layer and the loss in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import gru_sampled_loss

from .case import PRODUCTS, WIDTH, Batch, Case, Cases, batches
from .gru import HIDDEN, NO_COMPILE, ROUNDING, packed_gru, weights_of
from .sampled_loss import never_the_target

NEGATIVES = 2


def case(device: torch.device, batch: Batch, n_items: int = 0, width: int = WIDTH, hidden: int = HIDDEN) -> Case:
    n_items = n_items or batch.n_items
    events, offsets, packed = batch.events, batch.offsets(device), packed_gru(batch, device)
    targets = torch.randint(0, n_items, (events,), device=device)
    negatives = never_the_target(targets, n_items, NEGATIVES)

    def fastseq(p: float, x: Tensor, w_ih: Tensor, w_hh: Tensor, dense: Tensor, bias: Tensor, table: Tensor) -> Tensor:
        return gru_sampled_loss(
            F.linear(x, w_ih), w_hh, offsets, dense, bias, None, table, targets, negatives,
            max_len=batch.longest, reduction="sum", divisor=events,
        )  # fmt: skip

    def eager(p: float, x: Tensor, w_ih: Tensor, w_hh: Tensor, dense: Tensor, bias: Tensor, table: Tensor) -> Tensor:
        h = F.linear(packed(x, w_ih, w_hh), dense, bias)
        positive = (h * F.embedding(targets, table)).sum(1, keepdim=True)
        return F.softplus((h[:, None] * F.embedding(negatives, table)).sum(2) - positive).mean()

    network = [
        torch.randn(events, width, device=device),
        *weights_of(device, width, hidden),
        torch.randn(width, hidden, device=device) / 10,
        torch.randn(width, device=device),
    ]
    table = torch.randn(n_items + 1, width, device=device)
    read, gathered = sum(x.numel() for x in network), min(events * (1 + NEGATIVES), n_items) * width
    products = 6 * events * hidden * (width + hidden) + 2 * events * hidden * width
    return Case(
        "gru_sampled_loss", f"{batch}, H={hidden}, {NEGATIVES} negatives", {"fastseq": fastseq, "eager": eager},
        [*network, table], torch.rand((), device=device), no_compile=NO_COMPILE, tolerances=ROUNDING,
        products=True, indices=8 * events * (1 + NEGATIVES), flops=(products, 2 * products),
        elements=(read + gathered + events, 2 * read + gathered + events + table.numel()),
    )  # fmt: skip


CASES = [
    Cases(
        "gru_sampled_loss", case, "batch", cpu=batches("cpu", "ml-1m L=50"),
        cuda=batches("cuda", "ml-1m L=50", "beauty L=50"), tiny=[(Batch("tiny", [4, 3, 1]), 11, 8, 16)],
        cuda_dtypes=PRODUCTS,
    )
]  # fmt: skip
