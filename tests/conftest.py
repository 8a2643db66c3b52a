"""Every test runs under FASTSEQ_STRICT=1: a fallback to a slower implementation is a failure."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

os.environ.setdefault("FASTSEQ_STRICT", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; what needs more threads sets its own
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from fastseq._process import own_process

own_process()  # before torch: several test runs, or a test's own processes, may share these cores

import pytest  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():  # before a test that compiles imports Triton (kernels/__init__.py)
    os.environ.setdefault("TRITON_INTERPRET", "1")

try:
    from hypothesis import settings
except ImportError:  # a bare GPU machine; the tests that need it say so
    pass
else:  # the same examples in every run, so that a green run stays green; FASTSEQ_FUZZ_SEED=1 draws new ones
    settings.register_profile("fixed", derandomize=True, database=None)
    settings.load_profile("default" if os.environ.get("FASTSEQ_FUZZ_SEED") else "fixed")

Outside: TypeAlias = Callable[[str, str, str], Path]


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what Triton's interpreter runs, but for each op's call in test_every_op.py."""
    for item in items:
        interpreted = "triton" in item.name and "tests/ops/" in item.nodeid and "test_every_op" not in item.nodeid
        if interpreted or item.nodeid.startswith("tests/gpu/"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers in every run of a test."""
    torch.manual_seed(0)


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty and torch.empty_like filled with NaN (or the smallest integer): an unwritten output fails."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(x: torch.Tensor) -> torch.Tensor:
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).min)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))


@pytest.fixture(scope="session")
def outside() -> Outside:
    """Finds what is not in the repository, or skips the test: (environment variable, default, what it is) → its path.

    The default is relative to the folder ``shared`` beside the checkout.
    """

    def find(variable: str, default: str, what: str) -> Path:
        path = Path(os.environ.get(variable) or Path(__file__).resolve().parents[2] / "shared" / default)
        if not path.exists():
            pytest.skip(f"{what}: {path} does not exist; {variable} names another path")
        return path

    return find


@pytest.fixture(scope="session")
def shared_data(outside: Outside) -> Path:
    """The folder of real data sets."""
    return outside("FASTSEQ_DATA", "data", "real data sets")
