"""One rule for each op under autocast on a GPU: operands of products bfloat16, parameters and statistics float32.

The rule is applied to CPU tensors here, where the reference, C++ and the interpreted Triton kernels serve.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq import ops
from fastseq.ops import _dispatch

from .backends import needs_triton
from .calls import ALL, CALLS, differentiable
from .compare import relative_error

# By op: its activations, which CAST casts where they are not bfloat16. All other floating arguments are parameters.
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "bias_gelu_dropout": ("x",),
    "caser_windows": ("x",),
    "causal_attention": ("q", "k", "v"),
    "dropout": ("x",),
    "dropout_add_norm": ("x", "residual"),
    "embed_sequence": (),
    "gru": ("x_gates",),
    "gru_sampled_loss": ("x_gates",),
    "last_query_attention": ("q", "k", "v"),
    "linear_cross_entropy": ("h",),
    "sampled_loss": ("h",),
    "transformer_layer": ("x",),
}
# What autocast casts where it is not bfloat16 already: operands of products.
OPERANDS = {name: ACTIVATIONS[name] for name in ("caser_windows", "causal_attention", "gru", "gru_sampled_loss")}
OPERANDS["last_query_attention"] = ("q", "k", "v")
OPERANDS["transformer_layer"] = ("x", "in_weight", "in_bias", "out_weight", "weight1", "weight2")
FLOAT32_RESULT = {"gru_sampled_loss", "linear_cross_entropy", "sampled_loss"}  # losses
CASES = [  # with what is optional, and without
    pytest.param(name, change, id=f"{name}-{'-'.join(change)}")
    for name, change in ALL
    if name in ACTIVATIONS and (not change or None in change.values())
]
TOLERANCE = 3 * torch.finfo(torch.bfloat16).eps


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_WIDENED", set())


def arguments_of(name: str, change: dict[str, Any], kind: torch.dtype) -> dict[str, Any]:
    """The call with its activations rounded to bfloat16, in ``kind``, and all of them leaves."""
    torch.manual_seed(3)
    arguments = CALLS[name]() | change
    for key in differentiable(name, arguments):
        x = arguments[key].bfloat16().to(kind) if key in ACTIVATIONS[name] else arguments[key]
        arguments[key] = x.detach().requires_grad_()
    return arguments


def _tuple(x: Any) -> tuple[Tensor, ...]:
    return (x,) if isinstance(x, Tensor) else tuple(x)


def run(name: str, arguments: dict[str, Any]) -> list[Tensor]:
    output = getattr(ops, name)(**arguments)
    torch.manual_seed(4)
    upstream = torch.randn(output.shape, dtype=torch.float64).bfloat16().to(output.dtype)
    leaves = [arguments[key] for key in differentiable(name, arguments)]
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def exact(name: str, change: dict[str, Any]) -> list[Tensor]:
    """In float64 from the same numbers, without autocast."""
    arguments = {
        key: x.detach().double().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for key, x in arguments_of(name, change, torch.float32).items()
    }
    with ops.set_backend("reference"):
        return run(name, arguments)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("backend", ["cpu", "reference", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize(("name", "change"), CASES)
def test_types_and_values(
    name: str, change: dict[str, Any], backend: str, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations as bfloat16 or float32: what reaches the implementation, what comes out, and its gradients."""
    reached: dict[str, list[torch.dtype]] = {}
    found = _dispatch.served

    def recorded(op: str, device: str) -> _dispatch.Served:
        serving = found(op, device)

        def function(*arguments: Any) -> Any:
            reached[op] = [x.dtype for x in arguments if isinstance(x, Tensor) and x.is_floating_point()]
            outputs = serving.function(*arguments)
            meta = [x.to("meta") if isinstance(x, Tensor) else x for x in arguments]
            fakes = getattr(torch.ops.fastseq, op).default(*meta)
            for x, y in zip(_tuple(outputs), _tuple(fakes), strict=True):
                assert (x.shape, x.dtype, x.is_contiguous()) == (y.shape, y.dtype, y.is_contiguous()), op
            return outputs

        return replace(serving, function=function)

    monkeypatch.setattr(_dispatch, "served", recorded)
    arguments = arguments_of(name, change, kind)
    with ops.set_backend(backend), torch.autocast("cpu", torch.bfloat16):
        output, *gradients = run(name, arguments)
    activation = torch.bfloat16 if name in OPERANDS else kind
    expected = [
        torch.bfloat16 if key in OPERANDS.get(name, ()) else kind if key in ACTIVATIONS[name] else torch.float32
        for key, x in arguments.items()
        if isinstance(x, Tensor) and x.is_floating_point()
    ]
    assert sorted(map(str, reached[name])) == sorted(map(str, expected))
    result = torch.bfloat16 if name == "embed_sequence" else torch.float32 if name in FLOAT32_RESULT else activation
    assert output.dtype == result
    leaves = differentiable(name, arguments)
    assert [x.dtype for x in gradients] == [arguments[key].dtype for key in leaves]
    for what, x, true in zip(("output", *leaves), (output, *gradients), exact(name, change), strict=True):
        assert relative_error(x, true) <= TOLERANCE, what


def test_every_op_with_gradients_has_a_rule() -> None:
    assert ACTIVATIONS.keys() | {"linear"} == {name for name in CALLS if differentiable(name, CALLS[name]())}
