from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_python(
    *arguments: object, returncode: int = 0, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process of its own, with additions to the environment; its exit status is asserted."""
    command = [sys.executable, *map(str, arguments)]
    names = os.environ | environment
    done = subprocess.run(command, cwd=cwd, env=names, capture_output=True, text=True, timeout=600)
    assert done.returncode == returncode, f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}"
    return done
