"""kernels/tuning.py: fixed by default; with FASTSEQ_AUTOTUNE=1 one search for each kind of launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq import ops
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


@pytest.mark.parametrize("name", ["one tile", "blocks", "gru", "caser_windows"])
def test_candidates_agree_and_no_kind_has_a_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate gives the default's result but for the order of sums: the masks do not depend on tiles."""
    from fastseq.kernels import tuning

    kinds: dict[int, list[tuple[object, ...]]] = {}
    now = {"size": 0, "configuration": 0}

    def run(kind: tuple[object, ...], default: object, candidates: Sequence[object], launch: Callable[..., Any]) -> Any:
        kinds.setdefault(now["size"], []).append(kind)
        configurations = list(dict.fromkeys((default, *candidates)))
        return launch(configurations[min(now["configuration"], len(configurations) - 1)])

    monkeypatch.setattr(tuning, "run", run)
    for size in {"one tile": (19, 7), "blocks": (71, 66), "gru": (5, 9), "caser_windows": (9, 40)}[name]:
        now["size"] = size
        torch.manual_seed(size)
        function, leaves = problem(name, size)
        expected: list[Tensor] = []
        for number in range(6):
            now["configuration"] = number
            with set_backend("triton"):
                output = function(*leaves)
                torch.manual_seed(size)
                found = [output, *torch.autograd.grad(output, leaves, torch.randn_like(output))]
            expected = expected or found
            for x, y in zip(found, expected, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    (first, second) = kinds.values()
    assert set(first) == set(second) and len(set(first)) == {"one tile": 2, "gru": 2}.get(name, 3)


def problem(name: str, size: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """An op with the one long sequence of ``size`` events and a shorter one, and what it has gradients for."""
    offsets = torch.tensor([0, 3, 3 + size], dtype=torch.int32)
    if name == "gru":
        leaves = [torch.randn(3 + size, 60), torch.randn(60, 20) / 4]
        return lambda x, w: ops.gru(x, w, offsets, max_len=size), [x.requires_grad_() for x in leaves]
    if name == "caser_windows":
        length, n_h, n_v, d = 3, 6, 2, 24
        shapes = [(3 + size, d), (6, n_h, d), (length, n_h), (n_v, length), (n_v,), (d,)]
        sequences, stops = torch.ones(4, dtype=torch.int64), torch.arange(size, size + 4)
        weights = [torch.randn(shape).requires_grad_() for shape in shapes]
        return lambda x, *rest: ops.caser_windows(x, offsets, sequences, stops, *rest), weights
    settings: dict[str, Any] = dict(max_len=size, dropout_p=0.4, rng=make_rng(3, 1))
    qkv = [torch.randn(3 + size, 1, 24).requires_grad_() for _ in range(3)]
    return lambda q, k, v: ops.causal_attention(q, k, v, offsets, **settings), qkv
