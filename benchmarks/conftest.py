"""Every benchmark runs under FASTSEQ_STRICT=1, on the same numbers each time, in few and short rounds."""

from __future__ import annotations

import os

os.environ.setdefault("FASTSEQ_STRICT", "1")

from fastseq._process import own_process

own_process()  # before torch, and for every implementation alike

import pytest  # noqa: E402

# Of pytest-benchmark, unless the command line says otherwise: medians of at least 5 rounds, of a third of a second.
DEFAULTS = {"min_rounds": 5, "max_time": 0.3, "sort": "fullname", "group_by": "group", "columns": ["median", "iqr"]}


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    words = " ".join(map(str, config.invocation_params.args))
    for name, value in DEFAULTS.items():
        if f"--benchmark-{name.replace('_', '-')}" not in words and hasattr(config.option, f"benchmark_{name}"):
            setattr(config.option, f"benchmark_{name}", value)
