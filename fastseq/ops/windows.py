"""A training batch from data that lies on one device: windows of the tape, side by side.

The numbers of a batch are arguments in memory, and its sizes may be capacities, so that one recorded CUDA graph makes
every batch. The windows and their batches: fastseq/data/windows.py, fastseq/data/batch.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register


class Gathered(NamedTuple):
    """What ``gather_windows`` returns: fields of fastseq/data/batch.py."""

    items: Tensor
    offsets: Tensor
    users: Tensor
    rows: Tensor
    targets: Tensor
    target_sequences: Tensor
    target_users: Tensor
    l2_items: Tensor
    l2_weights: Tensor


def gather_windows(
    tape: Tensor,
    user_offsets: Tensor,
    users: Tensor,
    starts: Tensor,
    stops: Tensor,
    first_targets: Tensor,
    order: Tensor,
    inputs_before: Tensor,
    targets_before: Tensor,
    history_before: Tensor | None,
    place: Tensor,
    *,
    n_events: int,
    n_sequences: int,
    n_targets: int,
    n_history: int = 0,
    max_len: int,
    padding_idx: int,
) -> Gathered:
    """The batch of the windows ``order[low:high]``, where ``low, high = place``.

    The sizes may be larger than the batch of ``B`` windows with ``T`` inputs and ``N`` targets. Then the inputs from
    ``T`` on are ``padding_idx``, in further sequences of ``max_len`` inputs (the last one has what remains) and of user
    0, and what sequences are left are empty. The targets from ``N`` on are -100, at the rows ``T``, ``T`` + 1 and so
    on, all that find no further row at the last one.

    Args:
        tape: int64 [events], items of all users.
        user_offsets: int64 [n_users + 1], where each user's events begin on the tape.
        users, starts, stops, first_targets: int64 [windows], at least one, as in ``fastseq.data.windows.Windows``.
        order: int64 [M], at least one number of a window.
        inputs_before, targets_before: int64 [M + 1], running sums along ``order``, from 0: of ``stop - start``, and of
            ``stop - first_target + 1``.
        history_before: likewise, of ``stop - max(the user's begin, first_target - max_len)``; None: no L2 term.
        place: int64 [2], (low, high), 0 <= low <= high <= M.
        n_events: T, or more.
        n_sequences: B, or more: the further sequences must have room.
        n_targets: N, or more; more only where ``n_events`` is more than T.
        n_history: R, or more, where ``history_before`` is given, else 0.
        max_len: inputs of a further sequence, at most; events of a history in the L2 term.
        padding_idx: the id of padding.

    Returns:
        ``items`` [n_events], ``offsets`` int32 [n_sequences + 1], ``users`` [n_sequences], ``rows``, ``targets``,
        ``target_sequences``, ``target_users`` [n_targets], ``l2_items``, and ``l2_weights`` float32 [n_history] (items
        from R on are padding that weighs 0); all others int64.

    Raises:
        ValueError: if an argument is malformed or out of range, or a size too small. What only the data shows (the
            sizes too) is looked at on the CPU; on a GPU, where that would wait for the device, with FASTSEQ_CHECK=1.
    """
    for name, x in (("tape", tape), ("user_offsets", user_offsets), ("users", users), ("order", order)):
        _checks.ids(name, x)
    windows, size = users.shape[0], order.shape[0]
    for name, x in (("starts", starts), ("stops", stops), ("first_targets", first_targets)):
        _checks.ids(name, x, windows)
    sums = {"inputs_before": inputs_before, "targets_before": targets_before, "history_before": history_before}
    for name, before in sums.items():
        if before is not None:
            _checks.ids(name, before, size + 1)
    _checks.ids("place", place, 2)
    if windows == 0 or size == 0:
        raise ValueError(f"users has {windows} windows and order {size} of them, expected at least 1")
    if not 1 <= max_len < 2**31:
        raise ValueError(f"max_len is {max_len}, expected 1 ... 2**31 - 1")
    sizes = {"n_events": n_events, "n_sequences": n_sequences, "n_targets": n_targets, "n_history": n_history}
    for name, value in sizes.items():
        if not 0 <= value < 2**31 - 1:
            raise ValueError(f"{name} is {value}, expected 0 ... 2**31 - 2")
    if history_before is None and n_history:
        raise ValueError(f"n_history is {n_history}, but history_before is None")
    return Gathered(
        *_gather_windows(
            tape, user_offsets, users, starts, stops, first_targets, order, inputs_before, targets_before,
            history_before, place, *sizes.values(), max_len, padding_idx,
        )
    )  # fmt: skip


def check_room(
    events: int, sequences: int, targets: int, n_events: int, n_sequences: int, n_targets: int, max_len: int
) -> None:
    """Raises ValueError unless a batch of these sizes has room in a batch of the others (see ``gather_windows``)."""
    further = -(-(n_events - events) // max_len)
    for name, value, least in (
        ("n_events", n_events, events + (n_targets > targets)),
        ("n_sequences", n_sequences, sequences + max(further, 0)),
        ("n_targets", n_targets, targets),
    ):
        if value < least:
            raise ValueError(
                f"{name} is {value}, expected at least {least}: the batch has {events} inputs, {sequences} sequences "
                f"and {targets} targets"
            )


def check_data(
    tape: Tensor, user_offsets: Tensor, users: Tensor, starts: Tensor, stops: Tensor, first_targets: Tensor,
    order: Tensor, inputs_before: Tensor, targets_before: Tensor, history_before: Tensor | None, place: Tensor,
    n_events: int, n_sequences: int, n_targets: int, n_history: int, max_len: int, padding_idx: int,
) -> None:  # fmt: skip
    """What ``gather_windows`` raises for data."""
    (low, high), size = place.tolist(), order.shape[0]
    if not 0 <= low <= high <= size:
        raise ValueError(f"place is {low}, {high}, expected 0 <= low <= high <= {size}, the windows in order")
    picked = order[low:high]
    _checks.in_range("order", picked, len(users), f"0 <= window < {len(users)}")
    user, start, stop, first = users[picked], starts[picked], stops[picked], first_targets[picked]
    _checks.in_range("users", user, len(user_offsets) - 1, f"0 <= user < {len(user_offsets) - 1}")
    begin, end = user_offsets[user].clamp(min=0), user_offsets[user + 1].clamp(max=len(tape))
    wrong = ((start < begin) | (first <= start) | (stop < first) | (stop >= end)).nonzero()
    if wrong.shape[0]:
        w = int(picked[wrong[0]])
        raise ValueError(
            f"starts, first_targets and stops of window {w} are {int(starts[w])}, {int(first_targets[w])}, "
            f"{int(stops[w])}, expected {int(begin[wrong[0]])} <= start < first_target <= stop < {int(end[wrong[0]])}"
        )
    sums = [("inputs_before", inputs_before, stop - start), ("targets_before", targets_before, stop - first + 1)]
    if history_before is not None:
        sums.append(("history_before", history_before, stop - torch.maximum(begin, first - max_len)))
    for name, before, each in sums:
        if not torch.equal(before[low : high + 1].diff(), each):
            raise ValueError(f"{name} is not the running sum of the windows in order")
    events, targets = (int(before[high] - before[low]) for before in (inputs_before, targets_before))
    check_room(events, high - low, targets, n_events, n_sequences, n_targets, max_len)
    if history_before is not None and (history := int(history_before[high] - history_before[low])) > n_history:
        raise ValueError(f"n_history is {n_history}, expected at least {history}")


def _fake(tape: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    n_events, n_sequences, n_targets, n_history = arguments[10:14]
    sizes = (n_events, n_sequences + 1, n_sequences, *[n_targets] * 4, n_history, n_history)
    dtypes = {1: torch.int32, 8: torch.float32}
    return tuple(tape.new_empty((size,), dtype=dtypes.get(i, torch.int64)) for i, size in enumerate(sizes))


_gather_windows = register("gather_windows", fake=_fake, check=check_data)
