"""What ``import fastseq`` offers: names, and packages that load on first use."""

from __future__ import annotations

import subprocess
import sys

import fastseq

PROGRAM = """
import sys
import fastseq
assert "torch" not in sys.modules and "fastseq.ops" not in sys.modules, "import fastseq alone loads too much"
assert callable(fastseq.training.save_warprec) and callable(fastseq.data.pack_windows)
assert fastseq.models.SASRec is fastseq.SASRec
"""


def test_packages_load_on_first_use() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_listed_name_is_there() -> None:
    assert set(dir(fastseq)) == set(fastseq.__all__)
    assert all(hasattr(fastseq, name) for name in fastseq.__all__)
    for package in (fastseq.data, fastseq.models, fastseq.training):
        assert all(hasattr(package, name) for name in package.__all__), package
