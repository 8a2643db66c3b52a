"""The example of the README runs as it is printed, but for fewer epochs; the names that its text uses exist."""

from __future__ import annotations

import importlib
import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_the_python_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert '"epochs": 20' in code
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace('"epochs": 20', '"epochs": 1'), names)
    printed = capsys.readouterr().out
    assert "NDCG@10" in printed and "Recommendation(" in printed
    (answer,) = names["model"].recommend([names["data"].history("user-0007")], k=10)
    assert len(answer.items) == 10 and not set(answer.items) & set(names["data"].history("user-0007"))
    assert (tmp_path / "runs" / "mine" / "checkpoints").is_dir()


def test_the_calls_in_the_text() -> None:
    calls = set(re.findall(r"`(?:print\()?fastseq\.([a-z_.]+)\(", README))
    assert {"load", "training.save_warprec", "explain"} <= calls
    for call in calls:
        assert callable(reduce(getattr, call.split("."), importlib.import_module("fastseq"))), call
