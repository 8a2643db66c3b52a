"""fastseq verify beside the real WarpRec; and the restatement of its models, which other tests take for it."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import run_python
from tests.models.restatement import PLAIN
from tests.warprec.real import PARAMS, originals

from fastseq.cli import verify as module  # isort: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration of all three models on the embedded data."""
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump({"models": {name: {**params, "dropout_prob": 0.1} for name, params in PARAMS.items()}})
    )
    return path


def test_the_command_compares_with_warprec(config: Path) -> None:
    command = ["-m", "fastseq.cli", "verify", "--config", config, "--json", "--repeats", 1, "--batch-size", 32]
    done = run_python(*command)
    report = json.loads(done.stdout)
    assert report["same"] and report["reference"] == f"WarpRec {version('warprec')}"
    assert {row["model"] for row in report["models"]} == PARAMS.keys()


def test_the_restatement_is_warprecs(config: Path) -> None:
    def build(name: str, params: dict[str, Any], info: dict[str, int], seed: int) -> tuple[Any, Any]:
        theirs = getattr(originals, name)(params, info, seed=seed)
        theirs.log = lambda *args, **kwargs: None
        return theirs, PLAIN[name](params, info, seed)

    report = module.verify(config, batch_size=32, repeats=1, reference=module.Reference("WarpRec", build))
    assert {comparison.model: comparison.differing for comparison in report.comparisons} == {
        name: [] for name in PARAMS
    }
