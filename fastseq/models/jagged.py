"""From WarpRec's padded batches to the jagged ones that everything else computes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Ids: TypeAlias = tuple[str, Tensor, int]  # what errors call them, int64 ids, how many there are


def as_ids(ids: Tensor, name: str) -> Tensor:
    """``ids`` as int64; their values are for ``look`` to check.

    Raises:
        ValueError: if the type is not an integer.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} is {ids.dtype}, expected int64 ids")
    return ids.long()


def look(checked: Sequence[Ids], *numbers: Tensor) -> list[int]:
    """The ``numbers``, int64 scalars; all ids are checked in the same look, which is the only wait for a GPU.

    Raises:
        ValueError: for the first ids of which one is outside 0 … n − 1, naming where it is.
    """
    filled = [(name, ids, n_ids) for name, ids, n_ids in checked if ids.numel()]
    ends = [end for _, ids, _ in filled for end in ids.aminmax()]
    read: list[int] = torch.stack([*ends, *numbers]).cpu().tolist() if ends or numbers else []
    for (name, ids, n_ids), low, high in zip(filled, read[::2], read[1::2], strict=False):
        if low < 0 or high >= n_ids:
            where = ((ids < 0) | (ids >= n_ids)).nonzero()[0].tolist()
            position = ", ".join(f"{word} {i}" for word, i in zip(("row", "column", "depth"), where, strict=False))
            raise ValueError(f"{name} has id {int(ids[tuple(where)])} at {position}; expected 0 to {n_ids - 1}")
    return read[2 * len(filled) :]


def check_padded(item_seq: Tensor, lengths: Tensor | None, n_items: int) -> tuple[Tensor, Tensor | None, list[Ids]]:
    """A padded batch as int64, its shapes checked, and its ids to check.

    Args:
        item_seq: [B, W], ids 0 … n_items, right-padded with ``n_items``.
        lengths: [B], 0 … W.

    Raises:
        ValueError: naming the argument and its shape or type.
    """
    if item_seq.dim() != 2:
        raise ValueError(f"item sequences have shape {list(item_seq.shape)}, expected [batch, width]")
    item_seq = as_ids(item_seq, "item sequences")
    if item_seq.shape[1] == 0:
        item_seq = item_seq.new_full((item_seq.shape[0], 1), n_items)
    checked: list[Ids] = [("item sequences", item_seq, n_items + 1)]
    if lengths is not None:
        if lengths.shape != item_seq.shape[:1]:
            raise ValueError(f"sequence lengths have shape {list(lengths.shape)}, expected [{item_seq.shape[0]}]")
        lengths = as_ids(lengths.to(item_seq.device), "sequence lengths")
        checked.append(("sequence lengths", lengths, item_seq.shape[1] + 1))
    return item_seq, lengths, checked


def trailing_lengths(item_seq: Tensor, padding: int) -> Tensor:
    """Lengths [B] of the rows of [B, W] without their trailing padding."""
    columns = torch.arange(1, item_seq.shape[1] + 1, device=item_seq.device)
    return torch.where(item_seq != padding, columns, 0).amax(dim=1)


def padded_positions(lengths: Tensor, offsets: Tensor, width: int, total: int) -> Tensor:
    """Where in a padded batch [B, width], its rows one after another, the events of its jagged form are.

    Args:
        lengths: int64 [B], events in each row; offsets: int32 [B + 1], their running sum, which ends with ``total``.

    Returns:
        int64 [total].
    """
    starts = torch.arange(lengths.shape[0], device=lengths.device) * width - offsets[:-1]
    shift = starts.repeat_interleave(lengths, output_size=total)
    return shift + torch.arange(total, device=lengths.device)


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


def numbered(ids: Mapping[str, Tensor | None], padding: int | None) -> tuple[Tensor, dict[str, Tensor]]:
    """The distinct ids, ascending, and for each name the places of its ids among them. ``padding``, an id above all
    others, has the last place, whether it is among them or not."""
    named = {name: each for name, each in ids.items() if each is not None}
    together = [each.reshape(-1) for each in named.values()]
    if padding is not None:
        together.append(together[0].new_full((1,), padding))
    distinct, places = torch.unique(torch.cat(together), return_inverse=True)
    return distinct, placed(named, places)


def placed(named: Mapping[str, Tensor], places: Tensor) -> dict[str, Tensor]:
    """``places`` of ids that were laid one after another, in their shapes."""
    sizes = [each.numel() for each in named.values()]
    pieces = places[: sum(sizes)].split(sizes)
    return {name: piece.view(each.shape) for (name, each), piece in zip(named.items(), pieces, strict=True)}
