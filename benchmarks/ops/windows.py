"""gather_windows beside the same batch by repeat_interleave and indexing in PyTorch, from data on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastseq.data.windows import pack_windows
from fastseq.ops import gather_windows

from .case import FORWARD, INT64, Case, Cases, batch_of

USERS = 6040  # about ml-1m


def case(device: torch.device, name: str, targets: int, users: int = USERS) -> Case:
    """A batch in the middle of an epoch over users of these lengths."""
    batch = batch_of(name)
    lengths = np.resize(batch.lengths, users) + 1
    user_offsets = np.concatenate([[0], np.cumsum(lengths)])
    windows = pack_windows(user_offsets, user_offsets[1:], batch.longest)
    order = np.random.default_rng(0).permutation(len(windows))
    before = np.concatenate([[0], np.cumsum(windows.n_targets[order])])  # each input has its target
    low = len(order) // 2
    high = int(np.searchsorted(before, before[low] + targets))
    tape = np.arange(user_offsets[-1])
    each = windows.user, windows.start, windows.stop, windows.first_target
    arrays = tape, user_offsets, *each, order, before, before, np.array([low, high])
    *data, place = (torch.from_numpy(x).to(device) for x in arrays)
    n, b = int(before[high] - before[low]), high - low
    sizes: dict[str, Any] = {"n_events": n, "n_sequences": b, "n_targets": n, "max_len": batch.longest}

    def fastseq(p: float) -> tuple[Tensor, ...]:
        arguments: list[Any] = [*data, None, place]
        return tuple(gather_windows(*arguments, **sizes, padding_idx=len(tape)))

    def eager(p: float) -> tuple[Tensor, ...]:
        tape, _, user, start, stop, _, shuffled, _, _ = data
        picked = shuffled[low:high]
        begin, length = start[picked], stop[picked] - start[picked]
        offsets = torch.zeros(b + 1, dtype=torch.int32, device=device)
        offsets[1:] = length.cumsum(0)
        sequence = torch.arange(b, device=device).repeat_interleave(length, output_size=n)
        row = torch.arange(n, device=device)
        event = begin[sequence] + row - offsets[sequence]
        none = tape[:0]
        user = user[picked]
        return tape[event], offsets, user, row, tape[event + 1], sequence, user[sequence], none, none.float()

    return Case(
        "gather_windows", f"{name}, {targets} targets", {"fastseq": fastseq, "eager": eager}, [],
        indices=8 * (2 * n + 5 * n + 4 * b) + 4 * b,  # events read; items and what targets have; windows; offsets
    )  # fmt: skip


SIZES = [("ml-1m L=200", 2048), ("beauty L=50", 2048)]
INTEGERS: dict[str, Any] = {"dtypes": [INT64], "cuda_dtypes": [INT64], "directions": [FORWARD]}
CASES = [
    Cases(
        "gather_windows", case, "name targets", SIZES, [*SIZES, *((name, 16_384) for name, _ in SIZES)],
        tiny=[("ml-1m L=200", 300, 40)], **INTEGERS,
    ),
]  # fmt: skip
