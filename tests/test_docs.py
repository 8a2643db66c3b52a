"""The documents: what they link to and name exists, and prose stays within 120 columns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastseq.cli.dashboard import Dashboard

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
FOLDERS = "benchmarks|csrc|docs|examples|fastseq|kernels|tests"
HISTORY = {"CHANGELOG.md"}  # names what was removed


def prose(page: Path) -> list[str]:
    """The lines outside of code blocks."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    return [line for line in text.splitlines() if not line.startswith("    ")]


def anchors(page: Path) -> set[str]:
    """What a link may name behind its #: a heading in small letters, blanks as hyphens, other marks left out."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        file = page.parent / target if target else page
        assert target.startswith("https://") or file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in HISTORY], ids=lambda page: page.name)
def test_paths_and_modules_exist(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w/.-]*\w/?)(?![\w<*{{/-])", text):
        assert (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), path
    for module in re.findall(r"python[\d.]* -m ((?:benchmarks|tests|fastseq)[\w.]*\w)", text):
        file = ROOT.joinpath(*module.split("."))
        assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_is_narrow(page: Path) -> None:
    wide = [line for line in prose(page) if len(line) > 120 and not line.startswith(("|", "!["))]
    assert not wide, wide


def test_the_example_of_tracking_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tracking.md").read_text(), flags=re.S)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.count("NDCG@10") == 2
    assert list((tmp_path / "runs" / "watched" / "tensorboard").iterdir())


def test_the_configuration_of_tracking_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "tracking.md").read_text(), flags=re.S)
    dashboard = Dashboard(**yaml.safe_load(text)["dashboard"])
    assert dashboard.tensorboard.enabled and dashboard.mlflow.enabled and dashboard.wandb.enabled


def test_the_example_of_recommending_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "recommending.md").read_text(), flags=re.S)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert "item-0" in capsys.readouterr().out and (tmp_path / "answers.parquet").exists()
    assert len(names["ranked"].users) == len(names["split"].part("test"))
