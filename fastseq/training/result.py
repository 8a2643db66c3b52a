"""What training reports when it is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .state import StopReason


@dataclass(frozen=True)
class TrainResult:
    """How training went.

    Attributes:
        stopped: "finished" (all epochs), "patience", "interrupted" (Ctrl-C, SIGTERM) or "max_seconds".
        message: the same in a sentence, with how to resume where that applies.
        epochs, steps, targets: done, those before a resume included; a broken-off epoch is not counted in ``epochs``.
        seconds: in training steps, waiting for batches included, validations and checkpoints not.
        targets_per_second: ``targets / seconds``.
        first_loss, last_loss: of the first and the last step, mean over this rank's targets; None if there was none.
        metric: name of the validation metric, such as ``"NDCG@10"``, or None.
        best_epoch, best_value: where that metric was highest. The model has this epoch's weights if training ended
            by itself ("finished", "patience"), else those of the last step.
        history: the lines of ``metrics.jsonl``, one dictionary an epoch.
        device: name of the GPU or processor; where a resumed run has changed it, each line of ``history`` says its own.
        updates: how Adam moved item and user vectors: "rows" that a step touches, or "dense" and why.
        peak_memory_mb, planned_memory_mb: the most at a time, of this process or, where one trains, of the GPU's
            tensors, in 10⁶ bytes; and what the plan said, None without one.
        epoch_seconds, planned_epoch_seconds: training steps of an epoch at the mean speed since this process began, and
            what its first seconds foretold; None where there were no more.
        execution: "eager" on the CPU; on a GPU "graph", or "eager" and why, and where batches are made.
    """

    stopped: StopReason
    message: str
    epochs: int
    steps: int
    targets: int
    seconds: float
    targets_per_second: float
    first_loss: float | None
    last_loss: float | None
    metric: str | None
    best_epoch: int | None
    best_value: float | None
    history: list[dict[str, Any]]
    device: str
    execution: str
    updates: str
    peak_memory_mb: float
    planned_memory_mb: float | None
    epoch_seconds: float | None
    planned_epoch_seconds: float | None
