"""What the flows of each model did on the phantom device: made once for all processes of a test run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

Facts = dict[str, Any]


@pytest.fixture(scope="session")
def facts_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Facts]:
    """Gives the facts of a model's flows: tests/phantom/record.py, in a process of its own."""
    if torch.version.cuda is not None or torch.version.hip is not None:
        pytest.skip("the phantom device needs a PyTorch for the CPU: this one has a guard of its own for CUDA")
    pytest.importorskip("triton")
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def guard() -> Path:
        library = folder / "phantom_guard.so"
        with FileLock(f"{library}.lock"):
            if not library.exists():
                torch_folder = Path(torch.__file__).parent
                include = [f"-I{torch_folder / 'include'}", f"-I{torch_folder / 'include/torch/csrc/api/include'}"]
                abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
                link = [f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch_folder / 'lib'}"]
                compiler = os.environ.get("CXX", "g++")
                flags = ["-shared", "-fPIC", "-O1", "-std=c++20", abi, *include]
                subprocess.run([compiler, *flags, str(HERE / "guard.cpp"), "-o", str(library), *link], check=True)
        return library

    def facts(model: str) -> Facts:
        file = folder / f"phantom_{model}.json"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                command = [sys.executable, "-m", "tests.phantom.record", str(guard()), model]
                done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
                assert done.returncode == 0, done.stderr
                file.write_text(done.stdout.splitlines()[-1])
        facts: Facts = json.loads(file.read_text())
        return facts

    return facts
