"""Plain PyTorch twin of fastseq/ops/windows.py; it never waits for a device."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq.ops.sampled_loss import IGNORED


def gather_windows(
    tape: Tensor, user_offsets: Tensor, users: Tensor, starts: Tensor, stops: Tensor, first_targets: Tensor,
    order: Tensor, inputs_before: Tensor, targets_before: Tensor, history_before: Tensor | None, place: Tensor,
    n_events: int, n_sequences: int, n_targets: int, n_history: int, max_len: int, padding_idx: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    low, high = place[:1], place[1:]

    def size(before: Tensor) -> Tensor:
        return before[high] - before[low]

    def parts(before: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of each of ``count`` elements: whether the batch has it, its window, that one's number, its place there."""
        element = torch.arange(count, device=tape.device)
        real = element < size(before)
        found = torch.searchsorted(before.contiguous(), element + before[low], right=True) - 1
        number = torch.where(real, found, 0)
        return real, order[number], number - low, torch.where(real, element - before[number] + before[low], 0)

    n_real, count = size(inputs_before), high - low
    real, window, _, j = parts(inputs_before, n_events)
    items = torch.where(real, tape[starts[window] + j], padding_idx)

    b = torch.arange(n_sequences + 1, device=tape.device)
    own = inputs_before[(low + b).clamp(max=order.shape[0])] - inputs_before[low]
    offsets = torch.where(b <= count, own, (n_real + (b - count) * max_len).clamp(max=n_events)).int()
    b = b[:-1]
    window = torch.where(b < count, order[(low + b).clamp(max=order.shape[0] - 1)], 0)  # others are not the batch's
    sequence_users = torch.where(b < count, users[window], 0)

    real, window, number, j = parts(targets_before, n_targets)
    event = first_targets[window] + j
    row = inputs_before[low + number] - inputs_before[low] + event - 1 - starts[window]
    further = torch.arange(n_targets, device=tape.device) - size(targets_before)
    rows = torch.where(real, row, (n_real + further).clamp(max=n_events - 1))
    targets = torch.where(real, tape[event], IGNORED)
    target_sequences = torch.where(real, number, count + (rows - n_real).div(max_len, rounding_mode="floor"))

    target_users = torch.where(real, users[window], 0)
    batch = items, offsets, sequence_users, rows, targets, target_sequences, target_users

    if history_before is None:
        return *batch, tape[:0].clone(), tape[:0].float()
    real, window, _, j = parts(history_before, n_history)
    first = first_targets[window]
    p = torch.maximum(user_offsets[users[window]], first - max_len) + j
    weight = torch.minimum(stops[window], p + max_len) - torch.maximum(first, p + 1) + 1
    return *batch, torch.where(real, tape[p], padding_idx), torch.where(real, weight, 0).float()
