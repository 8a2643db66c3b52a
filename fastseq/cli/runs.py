"""What the commands that take a run folder share: their options, and the model that it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import CheckpointError
from .paths import expanded

AllowChanged = Annotated[
    bool, typer.Option("--allow-changed-data", help="Go on where the data are not those of the training.")
]
Data = Annotated[
    Path | None,
    typer.Option(help="Where the interactions are, if not where the training read them.", callback=expanded),
]
Run = Annotated[
    Path, typer.Argument(help="Run folder that `fastseq train` wrote.", show_default=False, callback=expanded)
]


def load_model(run: Path, device: str) -> Any:
    """The model of a run folder, which must be the one that its configuration names."""
    from ..devices import claim_device
    from ..training import RunFolder, load
    from . import experiment

    model = load(run, claim_device(device, "--device"))
    folder = RunFolder.existing(run)
    if folder.config_path.exists():
        named = experiment.config_of_run(folder).models[0].name
        if named != type(model).__name__:
            raise CheckpointError(
                f"{folder.model_path}: holds a {type(model).__name__}, but {folder.config_path} trained a {named}; "
                "restore the checkpoint, or train again with --overwrite"
            )
    return model


def refuse_changed(run: Path, changed: str, allowed: bool) -> None:
    if changed and not allowed:
        raise CheckpointError(
            f"{run}: {changed}; restore the data, name them with --data, train again, or go on with "
            "--allow-changed-data"
        )
