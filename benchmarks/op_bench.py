"""What the benchmarks of single ops share: an op agrees with its reference, gradients included, before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastseq.ops import make_rng, record_served, set_backend

RNG = make_rng(1, 2)
IMPLEMENTATIONS = ["fastseq", "eager"]
Function = Callable[..., Tensor]


def step(function: Function, p: float, leaves: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """The output of ``function(p, *leaves)`` and the gradients of all leaves."""
    output = function(p, *leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-4) -> None:
    """Relative error in the norm, so that a wrong row shows and rounding does not."""
    for x, y in zip(found, expected, strict=True):
        error, size = (x - y).norm().item(), y.norm().item()
        assert error <= tolerance * size, f"off by {error:.3g} of {size:.3g}"


def measure(
    benchmark: Any,
    implementation: str,
    functions: Mapping[str, Function],
    leaves: Sequence[Tensor],
    upstream: Tensor,
    *,
    group: str,
    dropout_p: float = 0.0,
) -> None:
    """Times forward and backward of ``functions[implementation]``, called as ``function(p, *leaves)``.

    "fastseq" has to match its reference, mask included; "eager" draws another mask and has to match without dropout.
    """
    leaves = [x.requires_grad_() for x in leaves]
    with record_served() as served:
        ours = step(functions["fastseq"], dropout_p, leaves, upstream)
    assert served and {backend for _, backend in served} == {"cpu"}
    with set_backend("reference"):
        assert_close(ours, step(functions["fastseq"], dropout_p, leaves, upstream))
        plain = step(functions["fastseq"], 0.0, leaves, upstream)
    assert_close(step(functions["eager"], 0.0, leaves, upstream), plain)
    benchmark.group = group
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark(step, functions[implementation], dropout_p, leaves, upstream)
