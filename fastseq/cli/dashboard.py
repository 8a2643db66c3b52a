"""The section `dashboard` of a configuration, in WarpRec's shape: which trackers a training reports to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator

from ..errors import ConfigError
from ..training import MLflow, TensorBoard, Tracker, WandB
from .paths import expanded
from .section import Section


class _Tracker(Section):
    """Off until it is enabled, as in WarpRec."""

    enabled: bool = False
    every_steps: int = Field(default=10, ge=1)


class TensorBoardSection(_Tracker):
    """Event files, in the run folder if no other is named."""

    directory: Path | None = None

    expand = field_validator("directory")(expanded)


class WandbSection(_Tracker):
    """Weights & Biases. A key is not written into the run folder."""

    team: str | None = None
    project: str = "fastseq"
    group: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None
    api_key: SecretStr | None = Field(default=None, exclude=True)
    api_key_file: Path | None = None
    excludes: list[str] = Field(default_factory=list)
    upload_checkpoints: bool = False

    expand = field_validator("api_key_file")(expanded)

    def key(self) -> str | None:
        """The key that is written here or in the file, if there is one."""
        if self.api_key is not None:
            return self.api_key.get_secret_value()
        if self.api_key_file is None:
            return None
        try:
            return self.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"dashboard.wandb.api_key_file: {self.api_key_file} cannot be read: {error}") from error


class MlflowSection(_Tracker):
    """MLflow. A token is not written into the run folder."""

    tracking_uri: str | None = None
    registry_uri: str | None = None
    experiment_name: str | None = None
    tags: dict[str, str] = Field(default_factory=dict)
    tracking_token: SecretStr | None = Field(default=None, exclude=True)
    save_artifacts: bool = False

    @field_validator("tags", mode="before")
    @classmethod
    def text(cls, value: Any) -> Any:
        """YAML reads numbers and dates where text is meant."""
        return {str(key): str(tag) for key, tag in value.items()} if isinstance(value, dict) else value


class Dashboard(Section):
    """Where training reports to, beside the run folder."""

    tensorboard: TensorBoardSection = Field(default_factory=TensorBoardSection)
    wandb: WandbSection = Field(default_factory=WandbSection)
    mlflow: MlflowSection = Field(default_factory=MlflowSection)

    @field_validator("tensorboard", "wandb", "mlflow", mode="before")
    @classmethod
    def short(cls, value: Any) -> Any:
        """`tensorboard: true` is short for `tensorboard: {enabled: true}`, and an empty section is off."""
        return {"enabled": value} if isinstance(value, bool) else {} if value is None else value

    def resolved(self) -> dict[str, Any]:
        """Every value but secrets, with absolute paths."""
        tree = self.model_dump(mode="json")
        for section, key in (("tensorboard", "directory"), ("wandb", "api_key_file")):
            if tree[section][key] is not None:
                tree[section][key] = str(Path(tree[section][key]).absolute())
        for key in ("tracking_uri", "registry_uri"):
            uri = tree["mlflow"][key]
            if uri is not None and ":" not in uri and not uri.startswith("databricks"):  # a folder
                tree["mlflow"][key] = str(Path(uri).absolute())
        return tree

    def trackers(self, name: str) -> list[Tracker]:
        """Those that are enabled, for the run of a name, such as `demo/SASRec`.

        Raises:
            ImportError: if the package of one is missing, naming the extra that brings it.
            ConfigError: if the file of a key cannot be read.
        """
        chosen: list[Tracker] = []
        if (board := self.tensorboard).enabled:
            chosen.append(TensorBoard(board.directory and board.directory / name, board.every_steps))
        if (flow := self.mlflow).enabled:
            if flow.tracking_token is not None:  # MLflow takes it from here alone
                os.environ["MLFLOW_TRACKING_TOKEN"] = flow.tracking_token.get_secret_value()
            same = flow.model_dump(include={"tracking_uri", "registry_uri", "tags", "save_artifacts", "every_steps"})
            chosen.append(MLflow(flow.experiment_name or "fastseq", **same))
        if (wandb := self.wandb).enabled:
            same = wandb.model_dump(exclude={"enabled", "api_key", "api_key_file"})
            chosen.append(WandB(**same, api_key=wandb.key()))
        return chosen
