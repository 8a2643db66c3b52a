"""kernels/tuning.py: fixed by default; with FASTSEQ_AUTOTUNE=1 one search for each kind of launch."""

from __future__ import annotations

import pytest
import torch

from fastseq.ops import dropout, make_rng, set_backend

from .backends import needs_triton

pytestmark = needs_triton


def test_off_launches_the_default_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastseq.kernels import tuning

    monkeypatch.delenv("FASTSEQ_AUTOTUNE", raising=False)
    launched: list[int] = []
    tuning.run(("off",), 1, (2, 3), launched.append)
    assert launched == [1]


def test_on_tries_each_once_and_keeps_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastseq.kernels import tuning

    seconds = {1: 3.0, 2: 1.0, 3: 2.0}
    timed: list[int] = []
    monkeypatch.setenv("FASTSEQ_AUTOTUNE", "1")
    monkeypatch.setattr(tuning, "_fastest", {})
    monkeypatch.setattr(tuning, "_seconds", lambda launch, config: timed.append(config) or seconds[config])
    launched: list[int] = []
    for _ in range(2):
        tuning.run(("on",), 1, (2, 1, 3), launched.append)
    assert timed == [1, 2, 3] and launched == [2, 2]


def test_what_the_chip_cannot_run_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import OutOfResources

    from fastseq.kernels import tuning

    def launch(config: int) -> int:
        if config == 2:
            raise OutOfResources(300, 227, "shared memory")
        return config

    monkeypatch.setenv("FASTSEQ_AUTOTUNE", "1")
    monkeypatch.setattr(tuning, "_fastest", {})
    assert tuning.run(("too large",), 1, (2,), launch) == 1


def test_a_kernel_is_searched_for_once_for_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """And its result is the same: the mask does not depend on the tile."""
    from fastseq.kernels import tuning

    rng = make_rng(1, 2)
    inputs = [torch.randn(rows, 8) for rows in (3, 7, 5)]
    expected = [dropout(x, 0.5, rng) for x in inputs]
    monkeypatch.setenv("FASTSEQ_AUTOTUNE", "1")
    monkeypatch.setattr(tuning, "_fastest", {})
    with set_backend("triton"):
        for x, y in zip(inputs, expected, strict=True):
            assert torch.equal(dropout(x, 0.5, rng), y)
    assert len(tuning._fastest) == 1
