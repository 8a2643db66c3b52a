"""Training windows: stretches of the tape, each one a sequence of a batch.

A window of user ``u`` has the input events ``items[start:stop]`` and counts the targets ``first_target ... stop``, all
of that user: the target of input ``j`` is event ``j + 1``. A user's training events ``[a, b)`` have the targets
``a + 1 ... b - 1``, and each of them is counted by exactly one window. With at most ``L`` = max_len inputs a window:

- The first window has the inputs ``[a, min(a + L, b - 1))`` and counts all their targets.
- Each next one stops ``stride`` later (the last one by what remains), starts at ``stop - L``, and counts the targets
  that are new. ``stride`` 1 gives every target the history it has alone; ``stride`` L is the least work.
- ``context``: the inputs reach back to ``first_target - L``, so that every target has its full history in the window,
  which then has up to ``L + stride - 1`` inputs. For models without positions, such as Caser.
- ``per_target``: one window per target ``t`` with the inputs ``[max(a, t - L), t)``.

A user with fewer than two training events gives no window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastseq.native import _C

from .ids import Int64Array


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows on a tape, by user and early to late; all int64 [n_windows]."""

    user: Int64Array
    start: Int64Array
    stop: Int64Array
    first_target: Int64Array

    def __len__(self) -> int:
        return len(self.user)

    @property
    def n_targets(self) -> Int64Array:
        """Targets that each window counts, int64 [n_windows]; at least 1."""
        return self.stop - self.first_target + 1


def pack_windows(
    offsets: Int64Array,
    stop: Int64Array,
    max_len: int,
    stride: int | None = None,
    *,
    per_target: bool = False,
    context: bool = False,
) -> Windows:
    """Cuts the training events of every user into windows.

    Args:
        offsets: int64 [n_users + 1], where each user's events start on the tape.
        stop: int64 [n_users], where the user's training events end (exclusive).
        max_len: L, most inputs of a window, at least 1.
        stride: 1 ... L; None: L.
        per_target: one window per target; ``stride`` and ``context`` then change nothing.
        context: reach back, so that every target has its full history.

    Raises:
        ValueError: if ``max_len`` or ``stride`` is out of range, or ``stop`` does not lie within ``offsets``.
    """
    shape = (max_len, max_len if stride is None else stride, per_target, context)
    offsets, stop = np.ascontiguousarray(offsets), np.ascontiguousarray(stop)
    count = _C.count_windows(offsets, stop, *shape)
    windows = Windows(*(np.empty(count, np.int64) for _ in range(4)))
    _C.pack_windows(offsets, stop, *shape, windows.user, windows.start, windows.stop, windows.first_target)
    return windows
