"""Peak memory, on systems with and without what it is read from."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from fastseq import _process as memory
from tests import run_python

PROGRAM = """
import numpy as np
from fastseq import _process as memory
memory.reset_peak_rss()
before = memory.peak_rss_mb()
block = np.ones(200_000_000 // 8)
assert 150 < memory.peak_rss_mb() - before < 300
del block
memory.reset_peak_rss()
assert memory.peak_rss_mb() < before + 100
"""


def test_the_peak_rises_with_what_is_touched_and_can_be_reset() -> None:
    """In a process of its own: this one keeps freed memory, and a block from it touches no new page."""
    run_python("-c", PROGRAM)


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
