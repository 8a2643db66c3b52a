"""linear: the C++ products against the float64 reference, in every type and over every tile's edge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import linear, linear_relu, set_backend
from fastseq.ops.linear import _LinearRelu

from .backends import check_cpu, check_threads, check_triton, needs_triton, run
from .compare import assert_as_accurate

OPS = {"linear", "linear_backward"}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


# 1100 rows are two chunks of depth for the weight's gradient, in bfloat16 too.
SHAPES = [(1, 1, 1), (5, 3, 2), (6, 64, 64), (47, 63, 65), (49, 129, 130), (300, 24, 33), (513, 100, 7), (1100, 8, 48)]
SHAPES += [(16, 33, 130), (17, 33, 130), (130, 70, 16)]
EMPTY = [(0, 4, 3), (3, 0, 4), (2, 3, 0)]


def inputs(rows: int, depth: int, columns: int, bias: bool = True) -> tuple[dict[str, Any], Tensor]:
    values = {"x": torch.randn(rows, depth), "weight": torch.randn(columns, depth)}
    return values | ({"bias": torch.randn(columns)} if bias else {}), torch.randn(rows, columns)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "depth", "columns"), [*SHAPES, *EMPTY])
def test_accuracy(rows: int, depth: int, columns: int, dtype: torch.dtype, poisoned_empty: None) -> None:
    check_cpu(linear, *inputs(rows, depth, columns), dtype, OPS)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "depth", "columns"), [(5, 3, 2), (47, 63, 65), *EMPTY])
def test_triton(rows: int, depth: int, columns: int, dtype: torch.dtype, poisoned_empty: None) -> None:
    """PyTorch's own product; on a GPU ops.linear does not even ask."""
    ops = set() if torch.cuda.is_available() else OPS
    check_triton(linear, *inputs(rows, depth, columns), ops, dtype)


def bf16(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return linear(x, weight, bias)


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(13, 9, 11), (49, 129, 130), (1100, 31, 48)])
def test_autocast(rows: int, depth: int, columns: int, backend: str, poisoned_empty: None) -> None:
    """Operands are rounded to bfloat16, sums and results are not: closer to the truth than PyTorch's own autocast."""
    values, upstream = inputs(rows, depth, columns)
    with set_backend("reference"):
        exact = run(linear, {k: v.double() for k, v in values.items()}, upstream, "reference", OPS)
    leaves = {k: v.clone().requires_grad_() for k, v in values.items()}
    with torch.autocast("cpu", torch.bfloat16):
        plain_output = F.linear(**leaves)
    plain_output.backward(upstream.bfloat16())
    plain = {"output": plain_output.detach()} | {f"gradient of {k}": v.grad for k, v in leaves.items()}
    rounded = run(bf16, values, upstream, "reference", OPS)
    for name, x in run(bf16, values, upstream, backend, OPS).items():
        assert x.dtype == torch.float32
        assert_as_accurate(x, plain[name], exact[name], 1.0, name)
        assert_as_accurate(x, rounded[name], rounded[name].double(), 1.0, f"{name} beside rounded operands")


def test_bfloat16_rounds_to_nearest_even() -> None:
    """Every bit pattern class: ties, the largest finite value, infinities, NaN, numbers below the normal range."""
    x = torch.tensor([1.00390625, 1.01171875, -1.00390625, 3.3895e38, 3.4028e38, torch.inf, -torch.inf, 1e-30])
    y = bf16(x[:, None], torch.ones(1, 1))[:, 0]
    assert torch.equal(y, x.bfloat16().float())
    assert bf16(torch.tensor([[torch.nan]]), torch.ones(1, 1)).isnan().all()


def test_strides_and_leading_dimensions() -> None:
    x, weight = torch.randn(6, 4, 10).transpose(0, 1), torch.randn(30, 10)
    expected = F.linear(x, weight)
    for w in (weight, weight.t().contiguous().t(), torch.randn(30, 40)[:, ::4].copy_(weight)):
        torch.testing.assert_close(linear(x, w), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(bf16(x, w), expected, rtol=0.05, atol=0.1)
    assert linear(x[0, 0], weight).shape == (30,)


def test_relu() -> None:
    """The node that serves a GPU, and what serves a CPU; small whole numbers, so that some sums are exactly zero."""
    values, upstream = inputs(9, 6, 7)
    leaves = [torch.randint(-2, 3, v.shape).double().requires_grad_() for v in values.values()]
    expected = F.linear(*leaves).relu()
    gradients = torch.autograd.grad(expected, leaves, upstream.double())
    for function in (linear_relu, _LinearRelu.apply):
        assert torch.equal(function(*leaves), expected)
        for x, y in zip(torch.autograd.grad(function(*leaves), leaves, upstream.double()), gradients, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_threads() -> None:
    for shape in ((701, 130, 90), (3, 64, 700)):
        for function in (linear, bf16):
            check_threads(function, *inputs(*shape))


def test_bfloat16_compiles() -> None:
    values, upstream = inputs(9, 20, 7)
    x, weight, bias = (v.requires_grad_() for v in values.values())
    torch.library.opcheck(torch.ops.fastseq.linear.default, (x, weight, bias, True))
    torch._dynamo.reset()
    expected = run(bf16, values, upstream, "cpu", OPS)
    compiled = run(torch.compile(bf16, fullgraph=True, backend="aot_eager"), values, upstream, "cpu", OPS)
    for name, result in compiled.items():
        torch.testing.assert_close(result, expected[name], rtol=1e-6, atol=1e-7, msg=name)
