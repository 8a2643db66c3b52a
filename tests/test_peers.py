"""benchmarks/peers.py without a peer: its arguments, and with which batches the quality is measured."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "peers.py"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.txt"
    path.write_text("".join(f"{user} {item}\n" for user in range(1, 4) for item in range(1, 6)))
    return path


def test_arguments_are_refused_in_one_line(data: Path) -> None:
    base = ["--peer-python", sys.executable, "--max-len", "5"]
    rectools, warprec = ["--peer", "rectools"], ["--peer", "warprec"]
    for arguments, message in (
        ([*rectools, "--data", "nofile"], "--data is nofile, which is no file"),
        ([*rectools, "--data", data, "--rounds", "0"], "--rounds is 0, expected 1 or more"),
        ([*rectools, "--data", data, "--epochs", "0"], "--epochs is 0, expected 1 or more"),
        ([*rectools, "--data", data, "--epochs", "1", "--quality-batch-size", "0"], "--quality-batch-size is 0"),
        ([*rectools, "--data", data, "--quality-batch-size", "9"], "is for RecTools with --epochs"),
        ([*warprec, "--data", data, "--epochs", "1", "--quality-batch-size", "9"], "is for RecTools with --epochs"),
    ):
        command = [sys.executable, str(SCRIPT), *base, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers_under_test", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("asked", "used"), [(None, 12), (7, 7)])
def test_quality_has_a_batch_of_its_own(
    data: Path, asked: int | None, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = {"test NDCG@10": [0.1, 0.2]}

    def measure(chosen: argparse.Namespace) -> dict[str, Any]:
        return {"curve": curve, "batch_size": f"{chosen.peer_batch_size} sequences"}

    def train(*arguments: Any) -> dict[str, Any]:
        return {"curve": curve}

    sizes = SimpleNamespace(
        COMMON={"batch_size": 512}, PARAMS={"SASRec": {"max_seq_len": 50}}, PER_TARGET="per target", train=train
    )
    monkeypatch.setitem(sys.modules, "peers_quality", SimpleNamespace(measure=measure))
    monkeypatch.setitem(sys.modules, "stride_quality", sizes)
    chosen = argparse.Namespace(
        peer="rectools", model="SASRec", data=data, epochs=2, seed=1, peer_batch_size=256, quality_batch_size=asked
    )
    record = loaded().rank(chosen)
    assert record["batch_size"] == {"rectools": f"{used} sequences", "fastseq": 512}
    assert record["NDCG@10"]["rectools"] == 0.2 and chosen.peer_batch_size == 256


def test_the_default_is_that_of_peers_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    text = (SCRIPT.parent / "peers_quality.py").read_text()
    assert f'"--peer-batch-size", type=int, default={loaded().QUALITY_BATCH},' in text
