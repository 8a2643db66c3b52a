"""Every benchmark runs under FASTSEQ_STRICT=1 and on the same numbers each time."""

from __future__ import annotations

import os

os.environ.setdefault("FASTSEQ_STRICT", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
