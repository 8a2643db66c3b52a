"""What fastseq.warprec says where WarpRec, or fastseq itself, is missing. These tests need no WarpRec."""

from __future__ import annotations

from pathlib import Path

import pytest

import fastseq
from tests import run_python


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise PackageNotFoundError", "not installed"),
        ("return '2.1.0'", "WarpRec 2.1.0 is installed, which is too old"),
        ("return '2.3.0'", "WarpRec 2.3.0 is installed, which is too new"),
        ("return '2.3rc1'", "WarpRec 2.3rc1 is installed, which is too new"),
    ],
)
def test_a_warprec_that_cannot_be_used_is_refused_with_the_remedy(body: str, words: str) -> None:
    code = (
        "import importlib.metadata as m\nfrom importlib.metadata import PackageNotFoundError\n"
        f"def version(name):\n    {body}\nm.version = version\nimport fastseq.warprec\n"
    )
    done = run_python("-c", code, returncode=1)
    last = done.stderr.strip().splitlines()[-1]
    assert words in last
    assert "pip install 'fastseq-rec[warprec]' installs 2.2.8" in last


def test_the_command_that_prints_a_file_answers_in_one_line() -> None:
    code = (
        "import runpy, sys, importlib.metadata as m\nfrom importlib.metadata import PackageNotFoundError\n"
        "def version(name):\n    raise PackageNotFoundError\nm.version = version\n"
        "sys.argv = ['-m']\nrunpy._run_module_as_main('fastseq.warprec')\n"
    )
    done = run_python("-c", code, returncode=1)
    (line,) = done.stderr.splitlines()
    assert "pip install 'fastseq-rec[warprec]' installs 2.2.8" in line


@pytest.mark.parametrize("name", ["fastseq_warprec.py", "fastseq_warprec_new_names.py"])
def test_a_worker_without_fastseq_is_told_what_to_install(name: str) -> None:
    path = Path(fastseq.__file__).with_name("warprec") / "custom_modules" / name
    code = f"import sys, runpy\nsys.modules['fastseq'] = None\nrunpy.run_path({str(path)!r})"
    done = run_python("-c", code, returncode=1)
    assert "fastseq is not installed for" in done.stderr.strip().splitlines()[-1]
