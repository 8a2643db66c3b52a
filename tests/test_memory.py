"""Peak memory, on systems with and without what it is read from."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from fastseq import memory


def test_the_peak_rises_with_what_is_touched_and_can_be_reset() -> None:
    memory.reset_peak_rss()
    before = memory.peak_rss_mb()
    block = np.ones(200_000_000 // 8)
    assert 150 < memory.peak_rss_mb() - before < 300
    del block
    memory.reset_peak_rss()
    assert memory.peak_rss_mb() < before + 100


def test_it_imports_and_answers_where_the_system_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither /proc nor the module resource."""

    def absent(path: Path, *arguments: object, **options: object) -> str:
        raise FileNotFoundError(path)

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "resource", None)
        patch.setattr(Path, "read_text", absent)
        patch.setattr(Path, "write_text", absent)
        bare = importlib.reload(memory)
        bare.reset_peak_rss()
        assert bare.peak_rss_mb() == 0.0
    importlib.reload(memory)
