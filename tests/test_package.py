"""What ``import fastseq`` offers: names, and packages that load on first use."""

from __future__ import annotations

import fastseq
from tests import run_python

PROGRAM = """
import sys
import fastseq
assert "torch" not in sys.modules and "fastseq.ops" not in sys.modules, "import fastseq alone loads too much"
assert callable(fastseq.training.save_warprec) and callable(fastseq.data.pack_windows)
assert fastseq.models.SASRec is fastseq.SASRec
"""


def test_packages_load_on_first_use() -> None:
    run_python("-c", PROGRAM)


def test_every_listed_name_is_there() -> None:
    assert set(dir(fastseq)) == set(fastseq.__all__)
    assert all(hasattr(fastseq, name) for name in fastseq.__all__)
    for package in (fastseq.data, fastseq.models, fastseq.training):
        assert all(hasattr(package, name) for name in package.__all__), package
