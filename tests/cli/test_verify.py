"""fastseq verify against the built-in restatement: a verdict that can be either."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from fastseq import GRU4Rec
from fastseq.cli import verify as module
from fastseq.cli.commands import app
from fastseq.errors import ConfigError

PARAMS = {
    "embedding_size": 16,
    "hidden_size": [16, 32],
    "num_layers": 1,
    "dropout_prob": 0.1,
    "reg_weight": 0.001,
    "weight_decay": 0.0,
    "learning_rate": 0.001,
    "epochs": 1,
    "batch_size": 64,
    "neg_samples": 2,
    "max_seq_len": 8,
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration on the embedded data, and no WarpRec."""
    monkeypatch.setitem(sys.modules, "fastseq.warprec", None)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"models": {"GRU4Rec": PARAMS, "BPR": {"epochs": 3}}}))
    return path


def test_the_same_is_the_same_and_says_with_what(config: Path) -> None:
    report = module.verify(config, batch_size=32, repeats=1)
    assert report.same and "restatement" in report.reference
    (result,) = report.comparisons
    assert set(result.errors) == {(w, d) for w in ("scores", "loss", "gradients") for d in ("float64", "float32")}
    assert min(result.reference_seconds, result.seconds, result.window_speed) > 0


def test_the_report_names_the_data(config: Path, tmp_path: Path) -> None:
    options = {"batch_size": 8, "repeats": 1}
    # A misspelt section, which WarpRec's configurations may not be refused for, is not the user's data.
    config.write_text(config.read_text() + "raeder: {local_path: mine.csv}\n")
    assert "neither reader.local_path nor --data" in module.verify(config, **options).data
    rows = [f"{user},{(user * 7 + place) % 20},{place}" for user in range(9) for place in range(6)]
    (tmp_path / "mine.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    found = module.verify(config, tmp_path / "mine.csv", **options).data
    assert found == f"{tmp_path / 'mine.csv'}: 9 users, 20 items, 54 events"


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
        module.verify(config, batch_size=8, repeats=1)
    assert str(caught.value).startswith(f"{config}: ") and words in str(caught.value)


def test_a_model_that_scores_otherwise_differs(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = GRU4Rec.score
    monkeypatch.setattr(GRU4Rec, "score", lambda self, h, items=None: score(self, h, items) * (1 + 1e-6))
    (result,) = module.verify(config, batch_size=32, repeats=1).comparisons
    assert result.differing == ["scores (float64)"]


def test_a_nan_differs() -> None:
    assert module.Comparison("X", {("loss", "float32"): float("nan")}).differing == ["loss (float32)"]
    assert torch.float32 in module.TOLERANCES


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("raise PackageNotFoundError", "not installed"),
        ("return '2.1.0'", "WarpRec 2.1.0 is installed, which is too old"),
        ("return '2.3.0'", "WarpRec 2.3.0 is installed, which is too new"),
        ("return '2.3rc1'", "WarpRec 2.3rc1 is installed, which is too new"),
    ],
)
def test_a_warprec_that_cannot_be_used_is_refused_with_the_remedy(found: str, words: str) -> None:
    code = (
        "import importlib.metadata as m\nfrom importlib.metadata import PackageNotFoundError\n"
        f"def version(name):\n    {found}\nm.version = version\nimport fastseq.warprec\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and words in last
    assert "pip install 'fastseq-rec[warprec]' installs 2.2.8" in last


@pytest.mark.parametrize("name", ["fastseq_warprec.py", "fastseq_warprec_new_names.py"])
def test_a_worker_without_fastseq_is_told_what_to_install(name: str) -> None:
    path = Path(module.__file__).parents[1] / "custom_modules" / name
    code = f"import sys, runpy\nsys.modules['fastseq'] = None\nrunpy.run_path({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "fastseq is not installed for" in done.stderr.strip().splitlines()[-1]


def test_the_command_says_what_the_timing_of_windows_is(config: Path) -> None:
    command = ["verify", "--config", str(config), "--batch-size", "32", "--repeats", "1"]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert shown.exit_code == 0 and "windows, stride 8, 2048 targets" in " ".join(shown.stdout.split())
    assert "the core model in batches of its own" in shown.stdout
    (row,) = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)["models"]
    assert (row["batch_size"], row["window_batch_size"]) == (32, 2048)
