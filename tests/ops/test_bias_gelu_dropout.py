"""bias_gelu_dropout: every implementation against the float64 reference."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq.ops import bias_gelu_dropout, dropout, make_rng, set_backend
from fastseq.ops.philox import keep_scale

from .backends import DEVICE, Function, check_cpu, check_threads, check_triton, needs_triton, run
from .compare import relative_error

OPS = {"bias_gelu_dropout", "bias_gelu_dropout_backward"}
RNG = make_rng(2**40 + 7, 3)


def op(p: float, site: int = 5) -> Function:
    def function(x: Tensor, bias: Tensor) -> Tensor:
        return bias_gelu_dropout(x, bias, dropout_p=p, rng=RNG.to(x.device), site=site)

    return function


def inputs(rows: int, width: int) -> tuple[dict[str, Any], Tensor]:
    return {"x": 2 * torch.randn(rows, width), "bias": torch.randn(width)}, torch.randn(rows, width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 63), (33, 130), (2500, 24), (0, 8)])
def test_accuracy(rows: int, width: int, p: float, dtype: torch.dtype, poisoned_empty: None) -> None:
    check_cpu(op(p), *inputs(rows, width), dtype, OPS)


@needs_triton
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (37, 3), (13, 63), (9, 260), (23, 128), (0, 8)])
def test_triton(rows: int, width: int, p: float, monkeypatch: pytest.MonkeyPatch, poisoned_empty: None) -> None:
    """Over the edges of a tile in both directions, several tiles a program, several programs."""
    kernels = importlib.import_module("fastseq.kernels.bias_gelu_dropout")
    monkeypatch.setattr(kernels, "TILE", 512)
    monkeypatch.setattr(kernels, "PARTIALS", 3)
    for dtype in (torch.float32, torch.bfloat16, torch.float16) if (rows, p) == (9, 0.3) else (torch.float32,):
        check_triton(op(p), *inputs(rows, width), OPS, dtype)


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=needs_triton)])
def test_pointwise_over_the_whole_range(backend: str) -> None:
    """Every value and derivative, not just their norm: also far out, where Φ is 0 or 1."""
    device = DEVICE if backend == "triton" else "cpu"
    count = 20011 if backend == "cpu" or device == "cuda" else 2003
    z = torch.cat([torch.linspace(-12, 12, count), torch.tensor([-1e4, -88.0, 88.0, 1e4, 0.0])])
    x = z.requires_grad_()
    with set_backend(backend):
        y = bias_gelu_dropout(x.unsqueeze(0).to(device), torch.zeros(len(z), device=device)).cpu()
        y.sum().backward()
    exact = z.detach().double()
    cdf = 0.5 * torch.erfc(-exact / math.sqrt(2))
    slope = cdf + exact * torch.exp(-0.5 * exact**2) / math.sqrt(2 * math.pi)
    assert ((y[0].double() - exact * cdf).abs() <= 3e-7 * exact.abs().clamp(min=1)).all()
    assert (x.grad is not None) and ((x.grad.double() - slope).abs() <= 6e-7).all()


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=needs_triton)])
def test_mask_is_that_of_dropout(backend: str) -> None:
    x, upstream = torch.rand(19, 300) + 0.5, torch.rand(19, 300) + 0.5
    results = run(op(0.4, 9), {"x": x, "bias": torch.zeros(300)}, upstream, backend, OPS)
    kept = dropout(torch.ones(19, 300), 0.4, RNG, 9) != 0
    assert torch.equal(results["output"] != 0, kept) and torch.equal(results["gradient of x"] != 0, kept)
    full = bias_gelu_dropout(x, torch.zeros(300))
    assert relative_error(results["output"][kept], full[kept] * keep_scale(0.4)) < 1e-6


def test_threads() -> None:
    check_threads(op(0.3), *inputs(701, 130))


def test_leading_dimensions_and_strides() -> None:
    x = torch.randn(6, 4, 10).transpose(0, 1)
    flat = run(op(0.3), {"x": x.reshape(24, 10), "bias": torch.ones(10)}, torch.ones(24, 10), "cpu", OPS)
    deep = run(op(0.3), {"x": x, "bias": torch.ones(10)}, torch.ones(4, 6, 10), "cpu", OPS)
    for name, value in deep.items():
        assert torch.equal(value.reshape(flat[name].shape), flat[name])


def test_autocast() -> None:
    """Under autocast parameters stay float32 beside bfloat16 activations: the op computes in the wider type."""
    x, bias = torch.randn(5, 8).bfloat16(), torch.randn(8)
    with torch.autocast("cpu", torch.bfloat16):
        y = bias_gelu_dropout(x, bias)
    assert torch.equal(y, bias_gelu_dropout(x.float(), bias))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradient_far_from_zero(backend: str) -> None:
    """1 above and 0 below, however far: the density is 0 there, whatever it is multiplied by."""
    x = torch.tensor([[-3e38, -1e30, -1e10, -50.0, 50.0, 1e10, 1e30, 3e38]], requires_grad=True)
    with set_backend(backend):
        bias_gelu_dropout(x, torch.zeros(8)).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[0.0] * 4 + [1.0] * 4]), rtol=1e-6, atol=1e-30)
