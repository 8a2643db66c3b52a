"""The example of the README runs as it is printed, on small numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
SMALLER = {'"embedding_size": 128': '"embedding_size": 16', '"epochs": 20': '"epochs": 1', "512": "16"}


def test_the_python_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    for large, small in SMALLER.items():
        assert large in code
        code = code.replace(large, small)
    rows = ["user,item,time"]
    for user in range(30):
        name = "some user" if user == 3 else f"u{user}"
        rows += [f"{name},i{(user * 7 + step) % 20},{step}" for step in range(9)]
    (tmp_path / "interactions.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert "NDCG@10" in capsys.readouterr().out
    (answer,) = names["model"].recommend([names["data"].history("some user")], k=10)
    assert len(answer.items) == 10 and all(item.startswith("i") for item in answer.items)
    assert not set(answer.items) & set(names["data"].history("some user"))
