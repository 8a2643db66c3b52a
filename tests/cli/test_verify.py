"""fastseq verify, with the tests' restatement of WarpRec's models for WarpRec: a verdict that can be either."""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

import fastseq
from fastseq import GRU4Rec
from fastseq.cli import verify as module
from fastseq.cli.commands import app
from fastseq.errors import ConfigError
from fastseq.models import MODELS
from tests.models.restatement import PLAIN
from tests.models.small import small_params

from .test_commands import here

PARAMS = small_params("GRU4Rec", hidden_size=[16, 32], reg_weight=0.001, neg_samples=2)
RESTATEMENT = module.Reference(
    "a restatement",
    lambda name, params, info, seed: (PLAIN[name](params, info, seed), MODELS[name](params, info, seed=seed)),
)
verify = partial(module.verify, reference=RESTATEMENT)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration on the embedded data."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"models": {"GRU4Rec": PARAMS, "BPR": {"epochs": 3}}}))
    return path


def test_the_same_is_the_same_and_says_with_what(config: Path) -> None:
    report = verify(config, batch_size=32, repeats=1)
    assert report.same and report.reference == "a restatement"
    (result,) = report.comparisons
    assert set(result.errors) == {(w, d) for w in ("scores", "loss", "gradients") for d in ("float64", "float32")}
    assert min(result.reference_seconds, result.seconds, result.window_speed) > 0


def test_without_warprec_it_says_what_to_install(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.delitem(sys.modules, "fastseq.warprec", raising=False)
    monkeypatch.delattr(fastseq, "warprec", raising=False)
    code, out, err = here("verify", "--config", config, folder=config.parent)
    assert (code, out) == (2, "")
    assert "WarpRec, which is not installed: pip install 'fastseq-rec[warprec]'" in err and "Python >= 3.12" in err


def test_the_report_names_the_data(config: Path, tmp_path: Path) -> None:
    # A misspelt section, which WarpRec's configurations may not be refused for, is not the user's data.
    config.write_text(config.read_text() + "raeder: {local_path: mine.csv}\n")
    assert "neither reader.local_path nor --data" in verify(config, batch_size=8, repeats=1).data
    rows = [f"{user},{(user * 7 + time) % 20},{time}" for user in range(9) for time in range(6)]
    path = tmp_path / "mine.csv"
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    assert verify(config, path, batch_size=8, repeats=1).data == f"{path}: 9 users, 20 items, 54 events"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("reader: data.csv", "reader is 'data.csv', expected a section"),
        ("models: {GRU4Rec: {optimization: Adam}}", "models.GRU4Rec: optimization is 'Adam', expected a section"),
        (
            "models: {GRU4Rec: {optimization: {properties: 3}}}",
            "models.GRU4Rec.optimization: properties is 3, expected a section",
        ),
        ("models: {GRU4Rec: {epochs: []}}", "models.GRU4Rec.epochs is an empty list"),
        ("models: {GRU4Rec: {}}", "models.GRU4Rec: hyperparameter 'embedding_size' is missing"),
        ("models: {GRU4Rec: {}, FastGRU4Rec: {epochs: 4}}", "several entries for GRU4Rec that differ, FastGRU4Rec"),
        ("models: {GRU4Rec: {epochs: 1}, GRU4Rec: {epochs: 2}}", "line 1: key 'GRU4Rec' stands twice"),
        ("models: [", "not valid YAML"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named_with_its_key(config: Path, text: str, words: str) -> None:
    config.write_text(text if "models" in text else f"{config.read_text()}{text}\n")
    with pytest.raises(ConfigError) as caught:
        verify(config, batch_size=8, repeats=1)
    assert str(caught.value).startswith(f"{config}: ") and words in str(caught.value)


def test_a_model_that_scores_otherwise_differs(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = GRU4Rec.score
    monkeypatch.setattr(GRU4Rec, "score", lambda self, h, items=None: score(self, h, items) * (1 + 1e-6))
    monkeypatch.setattr(module, "verify", verify)
    shown = CliRunner().invoke(
        app, ["verify", "--config", str(config), "--batch-size", "32", "--repeats", "1", "--json"]
    )
    (row,) = json.loads(shown.stdout)["models"]
    assert shown.exit_code == 1 and row["differing"] == ["scores (float64)"]


def test_a_nan_differs() -> None:
    assert module.Comparison("X", {("loss", "float32"): float("nan")}).differing == ["loss (float32)"]
    assert torch.float32 in module.TOLERANCES


def test_the_command_says_what_the_timing_of_windows_is(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "verify", verify)
    command = ["verify", "--config", str(config), "--batch-size", "32", "--repeats", "1"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0 and "windows, stride 8, 2048 targets" in shown.stdout
    assert "the core model in batches of its own" in shown.stdout
    (row,) = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)["models"]
    assert (row["batch_size"], row["window_batch_size"]) == (32, 2048)
