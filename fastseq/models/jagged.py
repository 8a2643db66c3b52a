"""From WarpRec's padded batches to the jagged ones that everything else computes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_ids(ids: Tensor, name: str, n_ids: int) -> Tensor:
    """``ids`` as int64.

    Raises:
        ValueError: if one is outside 0 … n_ids − 1 (names where it is), or the type is not an integer.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} is {ids.dtype}, expected int64 ids")
    ids = ids.long()
    wrong = (ids < 0) | (ids >= n_ids)
    if bool(wrong.any()):
        where = wrong.nonzero()[0].tolist()
        value = int(ids[tuple(where)])
        position = ", ".join(f"{word} {i}" for word, i in zip(("row", "column", "depth"), where, strict=False))
        raise ValueError(f"{name} has id {value} at {position}; expected 0 to {n_ids - 1}")
    return ids


def check_padded(item_seq: Tensor, lengths: Tensor | None, n_items: int) -> tuple[Tensor, Tensor | None]:
    """A padded batch as int64, its shapes and ids checked.

    Args:
        item_seq: [B, W], ids 0 … n_items, right-padded with ``n_items``.
        lengths: [B], 0 … W.

    Raises:
        ValueError: naming the argument, row, column and value.
    """
    if item_seq.dim() != 2:
        raise ValueError(f"item sequences have shape {list(item_seq.shape)}, expected [batch, width]")
    item_seq = check_ids(item_seq, "item sequences", n_items + 1)
    if item_seq.shape[1] == 0:
        item_seq = item_seq.new_full((item_seq.shape[0], 1), n_items)
    if lengths is None:
        return item_seq, None
    if lengths.shape != item_seq.shape[:1]:
        raise ValueError(f"sequence lengths have shape {list(lengths.shape)}, expected [{item_seq.shape[0]}]")
    return item_seq, check_ids(lengths.to(item_seq.device), "sequence lengths", item_seq.shape[1] + 1)


def trailing_lengths(item_seq: Tensor, padding: int) -> Tensor:
    """Lengths [B] of the rows of [B, W] without their trailing padding."""
    columns = torch.arange(1, item_seq.shape[1] + 1, device=item_seq.device)
    return torch.where(item_seq != padding, columns, 0).amax(dim=1)


def unpad(item_seq: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The first ``lengths`` columns of each row: items int64 [T], offsets int32 [B + 1]."""
    columns = torch.arange(item_seq.shape[1], device=item_seq.device)
    return item_seq[columns < lengths[:, None]], offsets_of(lengths)


def offsets_of(lengths: Tensor) -> Tensor:
    """int32 [B + 1]: 0, then the running sum of ``lengths`` [B]."""
    offsets = torch.zeros(lengths.shape[0] + 1, dtype=torch.int32, device=lengths.device)
    torch.cumsum(lengths, 0, dtype=torch.int32, out=offsets[1:])
    return offsets


def fill_empty(items: Tensor, offsets: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """The same sequences, each empty one replaced by a single ``padding`` id."""
    lengths = offsets.diff()
    empty = lengths == 0
    if not bool(empty.any()):
        return items, offsets
    filled = offsets_of(lengths.clamp(min=1))
    result = items.new_full((items.shape[0] + int(empty.sum()),), padding)
    shift = (filled - offsets)[:-1].long().repeat_interleave(lengths.long())
    result[torch.arange(items.shape[0], device=items.device) + shift] = items
    return result, filled


def last_rows(offsets: Tensor) -> Tensor:
    """Row [B] of each (non-empty) sequence's last event."""
    return offsets[1:].long() - 1


class _SelectRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.size = x.shape[0]
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), (rows,) = grads, ctx.saved_tensors
        return grad.new_zeros(ctx.size, *grad.shape[1:]).index_copy_(0, rows, grad), None


def select_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows [N] of ``x``, none of them twice: the gradient is a copy, where index_select's is a slow sum."""
    result: Tensor = _SelectRows.apply(x, rows)
    return result
