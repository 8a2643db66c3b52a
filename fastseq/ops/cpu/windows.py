"""Batches of windows on the CPU: csrc/windows.cpp, which writes a batch, and what fills it up to its sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq import _C

from ..sampled_loss import IGNORED
from ..windows import check_room


def gather_windows(
    tape: Tensor, user_offsets: Tensor, users: Tensor, starts: Tensor, stops: Tensor, first_targets: Tensor,
    order: Tensor, inputs_before: Tensor, targets_before: Tensor, history_before: Tensor | None, place: Tensor,
    n_events: int, n_sequences: int, n_targets: int, n_history: int, max_len: int, padding_idx: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    low, high = place.tolist()
    if not 0 <= low <= high <= order.shape[0]:
        raise ValueError(f"place is {low}, {high}")
    sums = (
        x.numpy() for x in (inputs_before, targets_before, inputs_before if history_before is None else history_before)
    )
    events, targets, history = (int(before[high] - before[low]) for before in sums)
    sequences = high - low
    check_room(events, sequences, targets, n_events, n_sequences, n_targets, max_len)
    items = torch.full((n_events,), padding_idx)
    offsets = torch.empty(n_sequences + 1, dtype=torch.int32)
    sequence_users = torch.zeros(n_sequences, dtype=torch.int64)
    rows = torch.arange(events - targets, events - targets + n_targets).clamp_(max=n_events - 1)
    target_items = torch.full((n_targets,), IGNORED)
    target_sequences = torch.empty(n_targets, dtype=torch.int64)
    l2_items = torch.full((n_history,), padding_idx)
    l2_weights = torch.zeros(n_history)
    data = tape, user_offsets, users, starts, stops, first_targets, order[low:high]
    written = [items[:events], offsets[: sequences + 1], sequence_users[:sequences]]
    written += [x[:targets] for x in (rows, target_items, target_sequences)]
    l2 = [None, None] if history_before is None else [x[:history].numpy() for x in (l2_items, l2_weights)]
    try:
        _C.gather_windows(*(x.contiguous().numpy() for x in data), max_len, *(x.numpy() for x in written), *l2)
    except ValueError as error:  # of the sizes too: they come from the running sums
        raise ValueError("the running sums are not those of the windows in order") from error
    further = torch.arange(1, n_sequences - sequences + 1) * max_len + events
    offsets[sequences + 1 :] = further.clamp_(max=n_events)
    target_sequences[targets:] = sequences + (rows[targets:] - events).div(max_len, rounding_mode="floor")
    target_users = torch.zeros(n_targets, dtype=torch.int64)
    torch.index_select(sequence_users, 0, target_sequences[:targets], out=target_users[:targets])
    return items, offsets, sequence_users, rows, target_items, target_sequences, target_users, l2_items, l2_weights
