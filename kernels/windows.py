"""A batch of windows: every element finds its window by a search in the running sums, and is written once.

One launch for all outputs: a program has a block of each. The numbers of the batch are read from memory, so a recorded
graph makes any batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastseq.ops.sampled_loss import IGNORED

from .lists import count_at_most, highest_bit
from .sizes import cdiv

# Elements of a program: many programs hide the latency of the searches. Not yet measured.
BLOCK, WARPS = 128, 4

_IGNORED = tl.constexpr(IGNORED)


@triton.jit
def _part(before, order, low, size, element, active):
    """Of elements of the batch: the number of their window in it, the window, and how many elements lie before it."""
    base = tl.load(before + low)
    number = count_at_most(before, low + 1, size, highest_bit(size), base + element, active, False)
    window = tl.load(order + low + number, mask=active, other=0)
    return number, window, tl.load(before + low + number, mask=active, other=0) - base


# The sizes differ from batch to batch: not compiled anew for those that are multiples of 16.
@triton.jit(do_not_specialize=["n_events", "n_sequences", "n_targets", "n_history"])
def _gather(tape, user_offsets, users, starts, stops, first_targets, order, inputs_before, targets_before,
            history_before, place, items, offsets, sequence_users, rows, targets, target_sequences, target_users,
            l2_items, l2_weights, n_events, n_sequences, n_targets, n_history, max_len, padding_idx, L2: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    low, high = tl.load(place), tl.load(place + 1)
    size = (high - low).to(tl.int32)
    n_real = tl.load(inputs_before + high) - tl.load(inputs_before + low)

    real = element < n_real
    _, window, skipped = _part(inputs_before, order, low, size, element, real)
    event = tl.load(starts + window, mask=real, other=0) + element - skipped
    item = tl.load(tape + event, mask=real, other=padding_idx)
    tl.store(items + element, item, mask=element < n_events)

    real = element <= size
    own = tl.load(inputs_before + low + element, mask=real, other=0) - tl.load(inputs_before + low)
    further = tl.minimum(n_real + (element - size) * max_len, n_events)
    tl.store(offsets + element, tl.where(real, own, further).to(tl.int32), mask=element <= n_sequences)
    real = element < size
    window = tl.load(order + low + element, mask=real, other=0)
    user = tl.load(users + window, mask=real, other=0)
    tl.store(sequence_users + element, user, mask=element < n_sequences)

    targets_real = tl.load(targets_before + high) - tl.load(targets_before + low)
    real = element < targets_real
    number, window, skipped = _part(targets_before, order, low, size, element, real)
    event = tl.load(first_targets + window, mask=real, other=0) + element - skipped
    first_row = tl.load(inputs_before + low + number, mask=real, other=0) - tl.load(inputs_before + low)
    row = first_row + event - 1 - tl.load(starts + window, mask=real, other=0)
    row = tl.where(real, row, tl.minimum(n_real + element - targets_real, n_events - 1))
    sequence = tl.where(real, number, size + (row - n_real) // max_len)
    inside = element < n_targets
    tl.store(rows + element, row, mask=inside)
    tl.store(targets + element, tl.load(tape + event, mask=real, other=_IGNORED), mask=inside)
    tl.store(target_sequences + element, sequence, mask=inside)
    tl.store(target_users + element, tl.load(users + window, mask=real, other=0), mask=inside)

    if L2:
        real = element < tl.load(history_before + high) - tl.load(history_before + low)
        _, window, skipped = _part(history_before, order, low, size, element, real)
        first = tl.load(first_targets + window, mask=real, other=0)
        begin = tl.load(user_offsets + tl.load(users + window, mask=real, other=0), mask=real, other=0)
        event = tl.maximum(begin, first - max_len) + element - skipped
        last = tl.minimum(tl.load(stops + window, mask=real, other=0), event + max_len)
        weight = tl.where(real, last - tl.maximum(first, event + 1) + 1, 0)
        inside = element < n_history
        tl.store(l2_items + element, tl.load(tape + event, mask=real, other=padding_idx), mask=inside)
        tl.store(l2_weights + element, weight.to(tl.float32), mask=inside)


def gather_windows(
    tape: Tensor, user_offsets: Tensor, users: Tensor, starts: Tensor, stops: Tensor, first_targets: Tensor,
    order: Tensor, inputs_before: Tensor, targets_before: Tensor, history_before: Tensor | None, place: Tensor,
    n_events: int, n_sequences: int, n_targets: int, n_history: int, max_len: int, padding_idx: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    sums = inputs_before, targets_before, inputs_before if history_before is None else history_before
    data = [x.contiguous() for x in (tape, user_offsets, users, starts, stops, first_targets, order, *sums, place)]

    def empty(size: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(size, dtype=dtype, device=tape.device)

    items, offsets, sequence_users = empty(n_events), empty(n_sequences + 1, torch.int32), empty(n_sequences)
    rows, targets, target_sequences, target_users = (empty(n_targets) for _ in range(4))
    l2_items, l2_weights = empty(n_history), empty(n_history, torch.float32)
    out = items, offsets, sequence_users, rows, targets, target_sequences, target_users, l2_items, l2_weights
    elements = max(n_events, n_sequences + 1, n_targets, n_history)
    _gather[(cdiv(elements, BLOCK),)](
        *data, *out, n_events, n_sequences, n_targets, n_history, max_len, padding_idx, L2=history_before is not None,
        BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return out
