"""Peak memory, on systems with and without what it is read from; freed memory that stays."""

from __future__ import annotations

import importlib
import platform
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


FAULTS = """
import resource
from fastseq._process import keep_freed_memory
keep_freed_memory(1 << 30)
faults = []
for _ in range(4):
    b"x" * int(1e8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_taken_again_without_page_faults_unless_the_user_has_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = int(run_python("-c", FAULTS).stdout)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    assert 10 * kept < int(run_python("-c", FAULTS).stdout)


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
