"""dropout_add_norm: every implementation against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq.ops import dropout, dropout_add_norm, make_rng

from .backends import Function, check_compiled, check_cpu, check_threads, run

OPS = {"dropout_add_norm", "dropout_add_norm_backward"}
RNG = make_rng(11, 2**33 + 1)


def op(p: float, eps: float = 1e-5) -> Function:
    def function(**tensors: Tensor) -> Tensor:
        return dropout_add_norm(**tensors, eps=eps, dropout_p=p, rng=RNG, site=3)

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
    ("rows", "width", "with_bias"), [(1, 5, True), (3, 63, False), (33, 130, True), (2500, 24, True)]
)
def test_accuracy(rows: int, width: int, with_bias: bool, p: float, dtype: torch.dtype, poisoned_empty: None) -> None:
    check_cpu(op(p), *inputs(rows, width, with_bias), dtype, OPS)


def test_mask_is_that_of_dropout() -> None:
    x, zero = torch.randn(19, 70), torch.zeros(19, 70)
    one, none = torch.ones(70), torch.zeros(70)
    direct = dropout_add_norm(x, zero, one, none, dropout_p=0.5, rng=RNG, site=4)
    composed = torch.nn.functional.layer_norm(dropout(x, 0.5, RNG, 4), (70,))
    torch.testing.assert_close(direct, composed, rtol=1e-5, atol=1e-5)


def test_constant_rows_stay_finite() -> None:
    """Variance 0 with WarpRec's eps of 1e-8: the output is the bias."""
    bias = torch.randn(64)
    y = dropout_add_norm(torch.full((3, 64), 1000.0), torch.zeros(3, 64), torch.ones(64), bias, eps=1e-8)
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


def test_empty_batch() -> None:
    results = run(op(0.3), *inputs(0, 8), "cpu", OPS)
    assert results["output"].shape == (0, 8)
    for name in ("weight", "bias", "x_bias"):
        assert torch.equal(results[f"gradient of {name}"], torch.zeros(8))


@pytest.mark.parametrize("with_bias", [True, False])
def test_opcheck_and_compile(with_bias: bool) -> None:
    values, upstream = inputs(9, 20, with_bias)
    arguments = [None if v is None else v.clone().requires_grad_() for v in values.values()]
    torch.library.opcheck(torch.ops.fastseq.dropout_add_norm.default, (*arguments, 1e-5, 0.3, RNG, 1))
    x, residual, weight, _, x_bias = values.values()
    mean, rstd = torch.randn(9), torch.rand(9)
    torch.library.opcheck(
        torch.ops.fastseq.dropout_add_norm_backward.default,
        (upstream, x, residual, weight, x_bias, mean, rstd, 1e-5, 0.3, RNG, 1),
    )
    check_compiled(op(0.3), values, upstream)


def test_mixed_types_follow_x() -> None:
    """Half-precision activations beside float32 parameters, without autocast."""
    values, upstream = inputs(7, 16)
    mixed = {n: v.bfloat16() if v is not None and v.dim() == 2 else v for n, v in values.items()}
    fast = run(op(0.3), mixed, upstream, "cpu", OPS)
    plain = run(op(0.3), mixed, upstream, "reference", OPS)
    assert fast["output"].dtype == torch.bfloat16 and fast["gradient of weight"].dtype == torch.float32
    for name, value in fast.items():
        torch.testing.assert_close(value, plain[name], rtol=2e-2, atol=2e-2)


def test_errors() -> None:
    x, v = torch.zeros(2, 3), torch.zeros(3)
    with pytest.raises(ValueError, match=r"residual is \[3, 2\], expected the shape of x, \[2, 3\]"):
        dropout_add_norm(x, x.t(), v, v)
    with pytest.raises(ValueError, match=r"x_bias is \[4\]"):
        dropout_add_norm(x, x, v, v, x_bias=torch.zeros(4))
    with pytest.raises(ValueError, match=r"dropout_p is -0\.1"):
        dropout_add_norm(x, x, v, v, dropout_p=-0.1)
    with pytest.raises(ValueError, match=r"rng is torch\.float32"):
        dropout_add_norm(x, x, v, v, dropout_p=0.1, rng=torch.zeros(2))
