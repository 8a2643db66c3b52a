"""A transformer layer as one node, against the references of its parts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from fastseq import ops

from .backends import check_cpu, check_triton, moved, needs_triton
from .calls import CALLS

D = 8
pytestmark = pytest.mark.filterwarnings("ignore:var")  # of no rows, in the reference
OPS = {"transformer_layer", "transformer_layer_backward"}


def problem(lengths: list[int], rows: torch.Tensor | None) -> tuple[dict[str, Any], torch.Tensor]:
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    call = CALLS["transformer_layer"]()
    weights = {name: x for name, x in call.items() if name.endswith(("weight", "bias", "1", "2"))}
    x = torch.randn(int(offsets[-1]), D)
    counted = x.shape[0] if rows is None else rows.shape[0]
    return dict(x=x, offsets=offsets, rows=rows, rng=ops.make_rng(5, 2), **weights), torch.randn(counted, D)


# Attention in one tile and in blocks, which write gradients in two kernels; all rows and some; none.
CASES = [
    ([3, 0, 4], None),
    ([3, 0, 4], torch.tensor([0, 2, 5, 6])),
    ([70, 1, 24], torch.arange(0, 95, 2)),
    ([5], torch.tensor([], dtype=torch.int64)),
]


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize(("lengths", "rows"), CASES)
def test_cpu(lengths: list[int], rows: torch.Tensor | None, dropout_p: float, poisoned_empty: None) -> None:
    layer = partial(ops.transformer_layer, heads=2, max_len=max(lengths), dropout_p=dropout_p)
    for dtype in (torch.float32, torch.float64):
        check_cpu(layer, *problem(lengths, rows), dtype, OPS, 1e-12)


@needs_triton
def test_a_row_that_is_none_reads_nothing() -> None:
    arguments = moved(problem([3, 0, 4], torch.tensor([-1, 3, 7, 2**40]))[0], "triton")
    with ops.set_backend("triton"), ops.check_data(False):
        y = ops.transformer_layer(**arguments, heads=2, max_len=4)
    assert y.isnan().all(1).tolist() == [True, False, True, True]


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=needs_triton)])
def test_repeated_rows(backend: str) -> None:
    """As of the unused targets of a batch in fixed sizes: all but the first have no gradient."""
    rows = torch.tensor([1, 3, 3, 6, 6, 6])
    arguments, upstream = moved(problem([3, 0, 4], rows)[0], backend), torch.randn(6, D)
    upstream[[2, 4, 5]] = 0
    leaves, results = [arguments[name].requires_grad_() for name in ("x", "in_weight")], []
    for name in ("reference", backend):
        with ops.set_backend(name):
            y = ops.transformer_layer(**arguments, heads=2, max_len=4, dropout_p=0.3)
            results.append([y, *torch.autograd.grad(y, leaves, upstream.to(y.device))])
    for expected, result in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize(("lengths", "rows"), CASES)
def test_triton(
    lengths: list[int],
    rows: torch.Tensor | None,
    dropout_p: float,
    poisoned_empty: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fastseq.kernels import transformer_layer as kernel

    if dropout_p:  # the bias of queries, keys and values is summed by PyTorch
        monkeypatch.setattr(kernel, "EVENTS", 0)
    layer = partial(ops.transformer_layer, heads=2, max_len=max(lengths), dropout_p=dropout_p)
    check_triton(layer, *problem(lengths, rows), OPS)
