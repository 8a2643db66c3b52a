"""What listens to a training: progress bars, trackers (``trackers.py``), and whatever else is called while it runs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fastseq.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from .evaluation import Evaluation
    from .result import TrainResult
    from .run import RunFolder

Event = Literal["on_start", "on_steps", "on_validation", "on_epoch", "on_end"]


@dataclass(frozen=True)
class Start:
    """What is trained.

    Attributes:
        model: its name.
        params: its hyperparameters.
        options: the ``TrainingOptions``, as a dictionary.
        split: what ``Split.describe`` says of the data.
        versions: of fastseq and PyTorch; device: the name of the GPU or processor.
        epochs, total_steps: of the whole run, early stopping apart.
        step: optimizer steps taken before, 0 unless the run is resumed.
        run: the run folder, or None. The command line has written ``run.config_path`` there.
    """

    model: str
    params: dict[str, Any]
    options: dict[str, Any]
    split: dict[str, Any]
    versions: dict[str, str]
    device: str
    epochs: int
    total_steps: int
    step: int
    run: RunFolder | None

    @property
    def name(self) -> str:
        """That of the run: the last two folders of its path, such as ``demo/SASRec``, else the model's."""
        return self.model if self.run is None else "/".join(self.run.path.absolute().parts[-2:])

    def settings(self) -> dict[str, Any]:
        """All of it by name, ``embedding_size``, ``options.seed``, ``data.users`` and the like: text, numbers, booleans
        and None, and JSON where a value is none of them."""
        named = {"model": self.model, **self.params, **self.versions, "device": self.device}
        named |= {f"options.{key}": value for key, value in self.options.items()}
        named |= {f"data.{key}": value for key, value in self.split.items()}
        plain = (str, int, float, bool, type(None))
        return {key: x if isinstance(x, plain) else json.dumps(x, default=str) for key, x in named.items()}


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        number: over all epochs, from 1.
        loss: mean over the targets of rank 0.
        learning_rate: that it took, of the first group of parameters.
    """

    number: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Progress:
    """Where training is.

    Attributes:
        epoch: from 1.
        step: optimizer steps taken, over all epochs.
        total_steps: of the whole run, early stopping apart.
        loss: mean over the targets of this epoch so far (of rank 0).
        targets_per_second: of training steps since this process began, all ranks together.
        eta_seconds: until the last epoch's last step at that speed, validations apart.
        steps: those since the last call, in order. One without a target for rank 0 is left out.
    """

    epoch: int
    epochs: int
    step: int
    total_steps: int
    loss: float
    targets_per_second: float
    eta_seconds: float
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class End:
    """What came of it.

    Attributes:
        result: how training went; None where ``error`` ended it.
        evaluation: what ``fit(test=)`` returned, as the command line's test metrics; None without one.
        error: what was raised.
    """

    result: TrainResult | None = None
    evaluation: Evaluation | None = None
    error: BaseException | None = None


class Callback:
    """Override what you want to hear of. Each method is called in rank 0 alone, in the thread that trains, and its time
    does not count as training's.

    What it raises ends the training with a ``TrainingError`` that names it. The checkpoints saved before stay, and
    ``resume=True`` goes on from them. A model of divided tables it must not ask: that takes all processes.
    """

    def on_start(self, start: Start) -> None:
        """Before the first step of ``fit``."""

    def on_steps(self, progress: Progress) -> None:
        """Every ``TrainingOptions.progress_every_seconds`` and at the end of an epoch, with all steps since the last
        call: a GPU's losses are read then, and not after every step, for which it would be waited."""

    def on_validation(self, step: int, evaluation: Evaluation) -> None:
        """After a validation, of the model after ``step`` steps, once the epoch's checkpoints are written."""

    def on_epoch(self, line: dict[str, Any]) -> None:
        """After an epoch, validation and checkpoints included, with its line of ``metrics.jsonl``."""

    def on_end(self, end: End) -> None:
        """The last call, also where training failed; not without an ``on_start`` that succeeded."""


@dataclass
class Callbacks:
    """Those of one training, in the process that reports; in the others there are none.

    Raises:
        ConfigError: if one is no ``Callback``.
    """

    callbacks: Sequence[Callback] = ()
    steps: list[Step] = field(default_factory=list)  # of which nobody has been told
    _begun: list[Callback] = field(default_factory=list)

    def __post_init__(self) -> None:
        if isinstance(self.callbacks, Callback):
            raise ConfigError(f"callbacks is a {type(self.callbacks).__name__}, expected a list of them: [...]")
        self.callbacks = tuple(self.callbacks)
        for each in self.callbacks:
            if not isinstance(each, Callback):
                raise ConfigError(
                    f"callbacks has {each!r}, expected objects of subclasses of fastseq.training.Callback; what is to "
                    "be called at every report is a subclass's on_steps"
                )
        self.heard = any(getattr(each.on_steps, "__func__", None) is not Callback.on_steps for each in self.callbacks)

    def tell(self, event: Event, *what: Any, kept: Callable[[], str] = str) -> None:
        """Calls all of them.

        Args:
            kept: what a training that fails leaves behind, in words.

        Raises:
            TrainingError: naming the first that fails.
        """
        for each in self.callbacks:
            try:
                getattr(each, event)(*what)
            except Exception as error:
                raise TrainingError(f"{_failure(each, event, error)}. Mend it or leave it out.{kept()}") from error
            if event == "on_start":
                self._begun.append(each)

    def end(self, end: End) -> None:
        """Tells of the end those that have been told of the start, all of them even if one fails.

        Raises:
            TrainingError: naming the first that fails, where training itself did not.
        """
        begun, self._begun = self._begun, []
        failed: list[tuple[str, Exception]] = []
        for each in begun:
            try:
                each.on_end(end)
            except Exception as error:
                failed.append((_failure(each, "on_end", error), error))
        for message, _ in failed[end.error is None :]:
            warnings.warn(message, stacklevel=2)
        if failed and end.error is None:
            raise TrainingError(f"{failed[0][0]}. Training is over, and what it saved is whole") from failed[0][1]


def _failure(callback: Callback, event: str, error: Exception) -> str:
    text = (str(error).strip().splitlines() or ["no message"])[0]
    return f"the callback {type(callback).__name__}.{event} failed: {type(error).__name__}: {text}".rstrip(".")
