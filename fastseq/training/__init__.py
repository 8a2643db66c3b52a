"""The training loop, evaluation, checkpoints and run folders."""

from __future__ import annotations

from .checkpoint import save_warprec
from .evaluation import Evaluation, evaluate
from .loop import Progress, Trainer, TrainingError, TrainResult
from .options import TrainingOptions
from .run import RunFolder, load

__all__ = [
    "Evaluation",
    "Progress",
    "RunFolder",
    "TrainResult",
    "Trainer",
    "TrainingError",
    "TrainingOptions",
    "evaluate",
    "load",
    "save_warprec",
]
