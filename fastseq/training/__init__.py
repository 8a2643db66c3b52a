"""The training loop, evaluation, checkpoints and run folders."""

from __future__ import annotations

from .callbacks import Callback, End, Progress, Start, Step
from .checkpoint import save_warprec
from .evaluation import Evaluation, evaluate
from .loop import Trainer, TrainingError, TrainResult
from .options import TrainingOptions
from .run import RunFolder, load
from .trackers import MLflow, TensorBoard, Tracker, WandB

__all__ = [
    "Callback",
    "End",
    "Evaluation",
    "MLflow",
    "Progress",
    "RunFolder",
    "Start",
    "Step",
    "TensorBoard",
    "Tracker",
    "TrainResult",
    "Trainer",
    "TrainingError",
    "TrainingOptions",
    "WandB",
    "evaluate",
    "load",
    "save_warprec",
]
