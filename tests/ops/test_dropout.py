"""dropout: every implementation against the reference."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from fastseq.ops import dropout, make_rng
from fastseq.ops.philox import keep_scale

from .backends import check_cpu, check_threads, check_triton, needs_triton, run

OPS = {"dropout"}
RNG = make_rng(17, 4)


def op(x: Tensor) -> Tensor:
    return dropout(x, 0.3, RNG.to(x.device), 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (63,), (3, 111), (5, 2, 65), (700, 24), (0, 8), (5, 0)])
def test_accuracy(shape: tuple[int, ...], dtype: torch.dtype, poisoned_empty: None) -> None:
    check_cpu(op, {"x": torch.randn(shape)}, torch.randn(shape), dtype, OPS)


@needs_triton
@pytest.mark.parametrize("shape", [(1, 1), (63,), (3, 111), (5, 2, 65), (9, 260), (700, 3), (0, 8)])
def test_triton(shape: tuple[int, ...], poisoned_empty: None) -> None:
    """One product and one rounding: the bits of the reference, mask included."""
    x, upstream = torch.randn(shape), torch.randn(shape)
    check_triton(op, {"x": x}, upstream, OPS)
    if not torch.cuda.is_available():
        expected = run(op, {"x": x}, upstream, "reference", OPS)
        for name, y in run(op, {"x": x}, upstream, "triton", OPS).items():
            assert torch.equal(y, expected[name]), name


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_scale(p: float) -> None:
    y = dropout(torch.ones(400, 256), p, RNG)
    kept = y != 0
    deviation = (p * (1 - p) / y.numel()) ** 0.5
    assert abs(kept.double().mean().item() - (1 - p)) < 5 * deviation
    assert torch.equal(y[kept], torch.full_like(y[kept], keep_scale(p)))


def test_gradient_uses_the_same_mask() -> None:
    x = torch.randn(9, 70)
    results = run(op, {"x": x}, torch.ones(9, 70), "cpu", OPS)
    assert torch.equal(results["gradient of x"] != 0, results["output"] != 0)


def test_zero_probability_is_the_identity() -> None:
    x = torch.randn(3, 4)
    assert dropout(x, 0.0) is x


def test_dropped_infinities_are_zero() -> None:
    y = dropout(torch.full((4, 64), torch.inf), 0.5, RNG)
    assert set(y.unique().tolist()) == {0.0, torch.inf}


def test_threads() -> None:
    check_threads(op, {"x": torch.randn(301, 130)}, torch.randn(301, 130))


def test_step_does_not_recompile() -> None:
    """seed and step travel in a tensor: a new step gives a new mask from the same graph."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, rng: dropout(x, 0.3, rng, 6), fullgraph=True, backend=counter)
    x = torch.ones(4, 64)
    for step in range(3):
        rng = make_rng(1, step)
        assert torch.equal(compiled(x, rng), dropout(x, 0.3, rng, 6))
    assert counter.frame_count == 1


def test_second_derivatives() -> None:
    """dropout is linear: its second derivative exists (of others: test_fuzz.py)."""
    x = torch.ones(3, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(op(x).square().sum(), [x], create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), [x])
    assert torch.equal(second, 2 * (op(torch.ones(3, 8))) ** 2)
