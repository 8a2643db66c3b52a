"""Every op under torch.library.opcheck and torch.compile, served by C++ and by the Triton kernels."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq import SASRec, ops
from fastseq.data.batch import JaggedBatch
from fastseq.ops import _dispatch
from tests.models.small import small_params

from .backends import moved, needs_triton
from .calls import CALLS, VARIANTS, differentiable, results

CASES = [
    *(pytest.param(name, backend, {}, marks=needs_triton if backend == "triton" else (), id=f"{name}-{backend}")
      for name in CALLS for backend in ("cpu", "triton")),
    *(pytest.param(name, "cpu", change, id=f"{name}-cpu-{'-'.join(change)}")
      for name, changes in VARIANTS.items() for change in changes),
]  # fmt: skip


def leaves_of(name: str, backend: str, change: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments where the backend runs; what may have a gradient asks for it."""
    torch.manual_seed(1)
    arguments = moved(CALLS[name]() | change, backend)
    return arguments | {key: arguments[key].detach().requires_grad_() for key in differentiable(name, arguments)}


def forward_and_backward(
    function: Callable[..., list[Tensor]], name: str, backend: str, change: dict[str, Any]
) -> list[Tensor]:
    arguments = leaves_of(name, backend, change)
    outputs = function(name, arguments)
    leaves = [x for x in arguments.values() if isinstance(x, Tensor) and x.requires_grad]
    if not leaves:
        return outputs
    torch.manual_seed(2)
    upstream = torch.randn(outputs[0].shape).to(outputs[0])
    return [outputs[0].detach(), *torch.autograd.grad(outputs[0], leaves, upstream)]


@pytest.fixture
def small_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of 16 items: sorting longer ones in the interpreter is most of the time of these tests."""
    if importlib.util.find_spec("triton") is not None:
        monkeypatch.setattr(importlib.import_module("fastseq.kernels.topk"), "SIZES", (16,))


@pytest.mark.usefixtures("small_lists")
@pytest.mark.parametrize(("name", "backend", "change"), CASES)
def test_opcheck(name: str, backend: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every op that a public call reaches, forward and backward, with the arguments that it got."""
    reached: dict[str, tuple[Any, ...]] = {}
    found = _dispatch.served

    def recorded(op: str, device: str) -> _dispatch.Served:
        serving = found(op, device)

        def function(*arguments: Any) -> Any:
            kept = (x.detach().clone() if isinstance(x, Tensor) else x for x in arguments)
            reached.setdefault(op, tuple(kept))
            return serving.function(*arguments)

        return replace(serving, function=function)

    with ops.set_backend(backend), ops.record_served() as served:
        with monkeypatch.context() as patch:
            patch.setattr(_dispatch, "served", recorded)
            forward_and_backward(results, name, backend, change)
        forward = "summed_linear_cross_entropy" if change.get("reduction") in ("mean", "sum") else name
        assert reached.keys() == {forward, f"{forward}_backward"} & _dispatch._files.keys()
        for op, arguments in reached.items():
            differentiable = f"{op}_backward" in _dispatch._files or op in ("dropout", "summed_linear_cross_entropy")
            given = [
                x.requires_grad_() if differentiable and isinstance(x, Tensor) and x.is_floating_point() else x
                for x in arguments
            ]
            torch.library.opcheck(getattr(torch.ops.fastseq, op).default, tuple(given))
    assert {by for _, by in served} == {backend}


def test_no_op_is_left_out() -> None:
    """But the cross-entropy with a sum or a mean, a variant of a call."""
    reached = {*CALLS, *(f"{name}_backward" for name in CALLS), "summed_linear_cross_entropy"}
    assert _dispatch._files.keys() <= reached


@pytest.mark.usefixtures("small_lists")
@pytest.mark.parametrize(("name", "backend", "change"), CASES)
def test_one_full_graph(name: str, backend: str, change: dict[str, Any]) -> None:
    """fullgraph=True raises where the graph breaks; results and gradients are those of eager."""
    torch._dynamo.reset()
    with ops.set_backend(backend), ops.record_served() as served:
        expected = forward_and_backward(results, name, backend, change)
        compiled = torch.compile(results, fullgraph=True, backend="aot_eager")
        actual = forward_and_backward(compiled, name, backend, change)
    assert {by for _, by in served} == {backend}
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a compiler")
def test_inductor_compiles_a_small_model() -> None:
    """One training step of SASRec, its own and inductor's kernels in one graph, equals eager's."""
    model = SASRec(small_params("SASRec"), {"n_items": 11, "n_users": 3})
    batch = JaggedBatch(
        items=torch.tensor([1, 2, 3, 4, 5, 6, 7]),
        offsets=torch.tensor([0, 3, 7], dtype=torch.int32),
        users=torch.tensor([0, 1]),
        max_len=4,
        rows=None,
        targets=torch.tensor([2, 3, 8, 5, 6, 7, 9]),
        target_sequences=torch.tensor([0, 0, 0, 1, 1, 1, 1]),
        negatives=torch.tensor([[9], [8], [7], [6], [1], [2], [3]]),
    )

    def step() -> Tensor:
        return model.loss(batch)

    gradients = []
    for function in (step, torch.compile(step, backend="inductor")):
        model.zero_grad()
        model.rng.copy_(ops.make_rng(3))
        loss = function()
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for x, y in zip(*gradients, strict=True):
        torch.testing.assert_close(x, y)
