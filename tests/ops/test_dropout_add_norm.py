"""dropout_add_norm: every implementation against the float64 reference."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq.ops import dropout, dropout_add_norm, make_rng, set_backend

from .backends import DEVICE, Function, check_cpu, check_threads, check_triton, needs_triton, run
from .compare import relative_error

OPS = {"dropout_add_norm", "dropout_add_norm_backward"}
pytestmark = pytest.mark.filterwarnings("ignore:var")  # of the reference, without rows
RNG = make_rng(11, 2**33 + 1)


def op(p: float, eps: float = 1e-5) -> Function:
    def function(**tensors: Tensor) -> Tensor:
        return dropout_add_norm(**tensors, eps=eps, dropout_p=p, rng=RNG.to(tensors["x"].device), site=3)

    return function


def inputs(rows: int, width: int, with_bias: bool = True) -> tuple[dict[str, Any], Tensor]:
    values = {
        "x": torch.randn(rows, width),
        "residual": torch.randn(rows, width) + 0.5,
        "weight": torch.randn(width),
        "bias": torch.randn(width),
        "x_bias": torch.randn(width) if with_bias else None,
    }
    return values, torch.randn(rows, width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(
    ("rows", "width", "with_bias"), [(1, 5, True), (3, 63, False), (33, 130, True), (2500, 24, True), (0, 8, True)]
)
def test_accuracy(rows: int, width: int, with_bias: bool, p: float, dtype: torch.dtype, poisoned_empty: None) -> None:
    check_cpu(op(p), *inputs(rows, width, with_bias), dtype, OPS)


@pytest.mark.parametrize("mean", [10.0, 1e3, 1e4])
def test_accuracy_where_the_mean_is_large_beside_the_deviation(mean: float) -> None:
    """No worse than elsewhere, though the mean itself has no more digits than float32."""
    values, upstream = inputs(40, 128, with_bias=False)
    values |= {"x": torch.zeros(40, 128), "residual": mean + 0.1 * torch.randn(40, 128)}
    check_cpu(op(0.0), values, upstream, torch.float32, OPS)
    output = op(0.0)(**values)
    with set_backend("reference"):
        exact = op(0.0)(**{k: v if v is None else v.double() for k, v in values.items()})
    assert relative_error(output, exact) < 1e-6


@needs_triton
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(
    ("rows", "width", "with_bias"),
    [(1, 5, True), (3, 63, False), (33, 130, True), (70, 24, True), (2, 1100, False), (0, 8, True)],
)
def test_triton(
    rows: int, width: int, with_bias: bool, p: float, monkeypatch: pytest.MonkeyPatch, poisoned_empty: None
) -> None:
    """Several rows a tile and rows wider than one, several tiles a program, several programs."""
    kernels = importlib.import_module("fastseq.kernels.rows")
    monkeypatch.setattr(kernels, "TILE", 512)
    monkeypatch.setattr(kernels, "PARTIALS", 3)
    check_triton(op(p), *inputs(rows, width, with_bias), OPS)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_triton_half_types(dtype: torch.dtype, poisoned_empty: None) -> None:
    check_triton(op(0.3), *inputs(19, 130), OPS, dtype)


@needs_triton
@pytest.mark.parametrize("first", ["reference", "triton"])
def test_triton_mixes_with_the_reference(first: str) -> None:
    """mean and rstd mean the same everywhere, so forward and backward may be served apart."""
    values, upstream = inputs(9, 70)
    expected = run(op(0.3), values, upstream, "reference", OPS)
    leaves = {name: x.to(DEVICE).requires_grad_() for name, x in values.items()}
    with set_backend(first):
        y = op(0.3)(**leaves)
    with set_backend("triton" if first == "reference" else "reference"):
        y.backward(upstream.to(DEVICE))
    for name, x in leaves.items():
        assert x.grad is not None
        assert relative_error(x.grad.cpu(), expected[f"gradient of {name}"]) < 1e-6, name


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=needs_triton)])
def test_mask_is_that_of_dropout(backend: str) -> None:
    """What is dropped of x has no gradient."""
    values, upstream = inputs(19, 70, with_bias=False)
    values |= {"residual": torch.zeros(19, 70), "weight": torch.ones(70), "bias": torch.zeros(70)}
    results = run(op(0.3), values, upstream, backend, OPS)
    assert torch.equal(results["gradient of x"] != 0, dropout(torch.ones(19, 70), 0.3, RNG, 3) != 0)
    composed = torch.nn.functional.layer_norm(dropout(values["x"], 0.3, RNG, 3), (70,))
    torch.testing.assert_close(results["output"], composed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=needs_triton)])
def test_constant_rows_stay_finite(backend: str) -> None:
    """Variance 0 with WarpRec's eps of 1e-8: the output is the bias."""
    device = DEVICE if backend == "triton" else "cpu"
    bias = torch.randn(64)
    arguments = torch.full((3, 64), 1000.0), torch.zeros(3, 64), torch.ones(64), bias
    with set_backend(backend):
        y = dropout_add_norm(*(x.to(device) for x in arguments), eps=1e-8).cpu()
    torch.testing.assert_close(y, bias.expand(3, 64), rtol=0, atol=0)


def test_threads() -> None:
    check_threads(op(0.3), *inputs(701, 130))


def test_leading_dimensions_and_strides() -> None:
    flat, upstream = inputs(24, 10)
    deep = {
        name: v.reshape(6, 4, 10).transpose(0, 1).contiguous().transpose(0, 1) if v is not None and v.dim() == 2 else v
        for name, v in flat.items()
    }
    expected = run(op(0.3), flat, upstream, "cpu", OPS)
    for name, value in run(op(0.3), deep, upstream.view(6, 4, 10), "cpu", OPS).items():
        assert torch.equal(value.reshape(expected[name].shape), expected[name])


def test_mixed_types_follow_x() -> None:
    """Half-precision activations beside float32 parameters, without autocast."""
    values, upstream = inputs(7, 16)
    mixed = {n: v.bfloat16() if v is not None and v.dim() == 2 else v for n, v in values.items()}
    fast = run(op(0.3), mixed, upstream, "cpu", OPS)
    plain = run(op(0.3), mixed, upstream, "reference", OPS)
    assert fast["output"].dtype == torch.bfloat16 and fast["gradient of weight"].dtype == torch.float32
    for name, value in fast.items():
        torch.testing.assert_close(value, plain[name], rtol=2e-2, atol=2e-2)
