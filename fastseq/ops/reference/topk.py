"""Plain PyTorch twin of fastseq/ops/topk.py: one user at a time, all scores sorted."""

from __future__ import annotations

import torch
from torch import Tensor


def topk(
    h: Tensor,
    weight: Tensor,
    k: int,
    bias: Tensor | None,
    seen_offsets: Tensor | None,
    seen_items: Tensor | None,
    seen_sorted: bool,
    codes: Tensor | None,
    scales: Tensor | None,
) -> tuple[Tensor, Tensor]:
    kind = torch.float64 if h.dtype == torch.float64 else torch.float32
    items = weight.to(kind)
    best = torch.full((h.shape[0], k), float("-inf"), dtype=kind, device=h.device)
    ids = torch.full((h.shape[0], k), -1, dtype=torch.int64, device=h.device)
    for row in range(h.shape[0]):
        scores = items @ h[row].to(kind)
        if bias is not None:
            scores = scores + bias.to(kind)
        if seen_offsets is not None and seen_items is not None:
            seen = seen_items[int(seen_offsets[row]) : int(seen_offsets[row + 1])]
            scores[seen] = float("-inf")
        if scores.isnan().any():
            item = int(scores.isnan().nonzero()[0])
            score = f"scores: the score of row {row} and item {item}"
            raise ValueError(f"{score} is NaN: h, weight or bias holds a NaN or an infinity")
        order = scores.sort(descending=True, stable=True)
        count = min(k, int((scores > float("-inf")).sum()))
        best[row, :count], ids[row, :count] = order.values[:count], order.indices[:count]
    return best.to(h.dtype), ids
