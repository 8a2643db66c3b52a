"""The section `dashboard`: WarpRec's shape, what reaches the trackers, secrets, missing packages, whole runs."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from fastseq.cli import progress
from fastseq.cli.configuration import parse_config
from fastseq.errors import ConfigError
from fastseq.training import TensorBoard, WandB
from tests.training.test_trackers import Server, fake_mlflow, fake_wandb, scalars
from tests.training.tiny import make_model, make_split

from .test_commands import MODELS, here, refusal, write_config, write_data

GRU = {"GRU4Rec": MODELS["GRU4Rec"]}


def parsed(dashboard: dict[str, Any] | None) -> Any:
    return parse_config({"models": GRU, "dashboard": dashboard})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setitem(sys.modules, "mlflow", fake_mlflow(server))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(server))  # type: ignore[arg-type]
    return server


def test_everything_is_off_until_it_is_enabled() -> None:
    off = ({}, None, {"wandb": None}, {"wandb": {"project": "P"}, "mlflow": {"tags": {}}}, {"tensorboard": False})
    for section in off:
        assert parsed(section).dashboard.trackers("demo/GRU4Rec") == []


def test_warprecs_keys_reach_the_trackers(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "")
    (tmp_path / "key").write_text("from a file\n")
    wandb = {
        "enabled": True, "team": "T", "project": "P", "group": "G", "api_key_file": str(tmp_path / "key"),
        "excludes": ["device"], "upload_checkpoints": True, "log_config": True,
    }  # fmt: skip
    mlflow = {
        "enabled": True, "tracking_uri": "mlruns/", "registry_uri": "mlruns/", "experiment_name": "E",
        "tags": {"number": 1}, "tracking_token": "token", "save_artifacts": True,
    }  # fmt: skip
    config = parsed({"wandb": wandb | {"mode": "offline", "every_steps": 3}, "mlflow": mlflow})
    assert config.unused == ["dashboard.wandb.log_config"]
    flow, biases = config.dashboard.trackers("demo/GRU4Rec")
    assert isinstance(biases, WandB)
    about = (biases.project, biases.team, biases.group, biases.mode, biases._key, biases.every_steps)
    assert about == ("P", "T", "G", "offline", "from a file", 3)
    assert biases.excludes == {"device"} and biases.upload_checkpoints
    assert (flow.experiment_name, flow.tags, flow.save_artifacts) == ("E", {"number": "1"}, True)
    assert flow._where == {"tracking_uri": "mlruns/", "registry_uri": "mlruns/"}
    import os

    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "token"
    with pytest.raises(ConfigError, match=r"api_key_file: .*nowhere cannot be read"):
        parsed({"wandb": {"enabled": True, "api_key_file": "nowhere"}}).dashboard.trackers("x")


def test_the_resolved_configuration_has_no_secret_and_whole_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mlflow = {"tracking_uri": "mlruns/", "registry_uri": "sqlite:///x.db", "tracking_token": "SECRET"}
    section = {"tensorboard": {"enabled": True, "directory": "board"}, "wandb": {"api_key": "SECRET"}}
    config = parsed(section | {"mlflow": mlflow})
    text = config.resolved(config.models[0], MODELS["GRU4Rec"])
    assert "SECRET" not in text and "SECRET" not in repr(config)
    again = parse_config(yaml.safe_load(text)).dashboard
    assert again.tensorboard.enabled and again.tensorboard.directory == tmp_path / "board"
    assert again.mlflow.tracking_uri == str(tmp_path / "mlruns") and again.mlflow.registry_uri == "sqlite:///x.db"
    assert again.resolved() == config.dashboard.resolved()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"tensorbord": True}, r"unknown key 'dashboard\.tensorbord': did you mean 'tensorboard'\?"),
        ({"wandb": {"enable": True}}, r"unknown key 'dashboard\.wandb\.enable': did you mean 'enabled'\?"),
        ({"wandb": {"mode": "off"}}, r"dashboard\.wandb\.mode: .*'offline'"),
        ({"mlflow": {"every_steps": 0}}, r"dashboard\.mlflow\.every_steps: .* greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_named(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed(section)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_ends_the_command_before_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    config = write_config(tmp_path, {"dashboard": {name: {"enabled": True}}}, **GRU)
    assert f"needs the package {name} " in (said := refusal("train", config, folder=tmp_path))
    assert f"pip install 'fastseq-rec[{name}]'" in said
    assert not (tmp_path / "runs").exists() and not (tmp_path / "data.csv").exists()


def test_a_run_with_its_test_and_its_end(server: Server, tmp_path: Path) -> None:
    """Two models are two runs, each with the metrics that the run folder has."""
    write_data(tmp_path / "data.csv")
    section = {"wandb": {"enabled": True, "mode": "offline"}, "mlflow": {"enabled": True, "save_artifacts": True}}
    config = write_config(tmp_path, {"dashboard": section}, **GRU, Caser=MODELS["Caser"])
    code, out, err = here("train", config, "--json", folder=tmp_path)
    assert code == 0, err
    runs = json.loads(out)["runs"]
    by_name = {(run["name"], "status" in run): run for run in server.runs.values()}
    assert len(by_name) == 4
    for run in runs:
        name = f"data/{run['model']}"
        metrics = run["evaluation"]["metrics"]
        tracked = {key: values[0][1] for key, values in by_name[name, False]["metrics"].items()}
        assert {key: tracked[f"test/{key}"] for key in metrics} == metrics
        flow = by_name[name, True]
        assert flow["status"] == "FINISHED" and {"config.yaml", "evaluation.json"} <= set(flow["files"])
        assert [step for step, _ in flow["metrics"]["test/NDCG_at_10"]] == [run["training"]["steps"]]
    assert here("train", config, "--resume", "--json", folder=tmp_path)[0] == 0 and len(server.runs) == 4


def test_a_failing_tracker_is_one_line_and_resume_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path / "data.csv")
    config = write_config(tmp_path, {"dashboard": {"wandb": {"enabled": True}}}, **GRU)

    def unreachable(*arguments: Any) -> None:
        raise ConnectionError("no route to the server")

    with monkeypatch.context() as patch:
        patch.setattr(WandB, "on_epoch", unreachable)
        code, _, err = here("train", config, folder=tmp_path)
    assert code == 1 and "callback WandB.on_epoch failed: ConnectionError: no route to the server" in err
    code, out, err = here("train", config, "--resume", "--json", folder=tmp_path)
    assert code == 0 and json.loads(out)["runs"][0]["training"]["stopped"] == "finished", err
    assert len(server.runs) == 1


def test_tensorboard_in_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    write_data(tmp_path / "data.csv")
    section = {"dashboard": {"tensorboard": {"enabled": True, "directory": "board", "every_steps": 1}}}
    code, out, err = here("train", write_config(tmp_path, section, **GRU), "--json", folder=tmp_path)
    assert code == 0, err
    held, _ = scalars(tmp_path / "board" / "data" / "GRU4Rec")
    metrics = json.loads(out)["runs"][0]["evaluation"]["metrics"]
    assert {key: held[f"test/{key}"][0][1] for key in metrics} == pytest.approx(metrics)
    assert isinstance(parsed({"tensorboard": True}).dashboard.trackers("x")[0], TensorBoard)


def test_bars_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal shows where training is, a log has a line an epoch."""
    from fastseq.training import Trainer, TrainingOptions

    split = make_split()
    for terminal in (True, False):
        out = Console(file=io.StringIO(), force_terminal=terminal, width=200, markup=False, highlight=False)
        monkeypatch.setattr(progress, "stderr", out)
        monkeypatch.setattr(progress, "say", lambda text, out=out: out.print(text, soft_wrap=True))
        with progress.progress_of("NDCG@10", quiet=False) as callbacks:
            options = TrainingOptions(epochs=2)
            result = Trainer(make_model(split), split, options, None, callbacks("Tiny")).fit()
        text = out.file.getvalue()  # type: ignore[attr-defined]
        value = result.history[-1]["validation"]["NDCG@10"]
        assert f"NDCG@10 {value:.4f}" in text and "epoch 2/2" in text
        if not terminal:
            assert [line.split(",")[0] for line in text.splitlines()] == ["Tiny: epoch 1/2", "Tiny: epoch 2/2"]
    with progress.progress_of("NDCG@10", quiet=True) as callbacks:
        assert callbacks("Tiny") == ()
