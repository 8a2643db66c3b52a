"""What two processes send each other in a step, counted by the kernel."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.training.hosts import why_none


@pytest.mark.slow
@pytest.mark.skipif(why_none() is not None, reason=f"no network namespaces here: {why_none()}")
def test_a_step_sends_what_it_touches() -> None:
    """Rows, dense layers, headers and all: at most three times the rows that a process touches, never a table."""
    command = [sys.executable, "-m", "benchmarks.wire", "--items", "50000", "--events", "60000", "--steps", "5"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.9 < told["ratio"] <= 3, told
    assert told["bytes_sent"] < told["table_bytes"] / 4, told
