"""Runs an op with its gradients on one backend, and judges the fast paths against the float64 reference."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq.ops import record_served, set_backend

from .compare import assert_accurate

Function = Callable[..., Tensor]
Inputs = Mapping[str, Any]


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the Triton kernels run, there interpreted
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def moved(values: Mapping[str, Any], backend: str) -> dict[str, Any]:
    """``values`` with the tensors where ``backend`` runs."""
    device = DEVICE if backend == "triton" else "cpu"
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in values.items()}


def run(function: Function, inputs: Inputs, upstream: Tensor, backend: str, ops: set[str]) -> dict[str, Tensor]:
    """The output and the gradient of every floating input, on the CPU; ``backend`` must have served exactly ``ops``.

    Args:
        function: called with ``inputs`` as keywords, on the device where ``backend`` runs.
        upstream: gradient of the output, cast to the output's type.
        ops: names of the ops that must have run; empty asserts nothing.
    """
    leaves = {name: x if x is None else x.detach().clone() for name, x in moved(inputs, backend).items()}
    for x in leaves.values():
        if x is not None and x.is_floating_point():
            x.requires_grad_()
    with set_backend(backend), record_served() as served:
        output = function(**leaves)
        output.backward(upstream.to(output))
    if ops:
        assert set(served) == {(op, backend) for op in ops}
    results = {"output": output.detach().cpu()}
    for name, x in leaves.items():
        if x is not None and x.requires_grad:
            assert x.grad is not None, f"{name} got no gradient"
            assert x.grad.dtype == x.dtype and x.grad.shape == x.shape
            results[f"gradient of {name}"] = x.grad.cpu()
    return results


def cast(inputs: Inputs, dtype: torch.dtype) -> dict[str, Any]:
    """Floating tensors in ``dtype``; the others as they are."""
    return {name: x.to(dtype) if x is not None and x.is_floating_point() else x for name, x in inputs.items()}


def check_cpu(
    function: Function, inputs: Inputs, upstream: Tensor, dtype: torch.dtype, ops: set[str], tolerance: float = 1e-14
) -> None:
    """The CPU path in ``dtype`` errs little more than the plain one in that type (tests/ops/compare.py)."""
    rounded, upstream = cast(inputs, dtype), upstream.to(dtype)
    exact = run(function, cast(rounded, torch.float64), upstream, "reference", ops)
    plain = run(function, rounded, upstream, "reference", ops)
    fast = run(function, rounded, upstream, "cpu", ops)
    assert list(fast) == list(plain) == list(exact)
    assert_accurate(fast, fast.values(), plain.values(), exact.values(), tolerance)


def check_triton(
    function: Function, inputs: Inputs, upstream: Tensor, ops: set[str], dtype: torch.dtype = torch.float32
) -> None:
    """The Triton kernels err little more than plain PyTorch in ``dtype``; on a GPU, or without one interpreted."""
    rounded, upstream = cast(inputs, dtype), upstream.to(dtype)
    exact = run(function, cast(rounded, torch.float64), upstream, "reference", ops)
    plain = run(function, rounded, upstream, "reference", ops)
    fast = run(function, rounded, upstream, "triton", ops)
    assert list(fast) == list(plain) == list(exact)
    assert_accurate(fast, fast.values(), plain.values(), exact.values())


def check_same_on_threads(compute: Callable[[], Sequence[Tensor] | Mapping[str, Tensor]]) -> None:
    """``compute`` gives tensors of the same bits with 1, 2 and 8 threads."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            tensors = compute()
            results.append(dict(tensors) if isinstance(tensors, Mapping) else dict(enumerate(tensors)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for name, x in other.items():
            assert torch.equal(x, results[0][name]), f"{name} depends on the number of threads"


def check_threads(function: Function, inputs: Inputs, upstream: Tensor) -> None:
    """The CPU path gives the same bits with 1, 2 and 8 threads."""
    check_same_on_threads(lambda: run(function, inputs, upstream, "cpu", set()))
