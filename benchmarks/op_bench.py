"""What the benchmarks of single ops share: an implementation is correct before it is timed.

Every bench file gives ``measure`` its functions by name:

    fastseq   the op
    eager     the best plain PyTorch for the same work; more of them under names of their own
    compiled  torch.compile of eager, made here and compiled before the clock starts

"forward" is evaluation (no gradients, no dropout), "forward + backward" a step of training with the seed's dropout.
Batches hold 2,048 events, the batch size of the seed configurations, with lengths as their data sets have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq.ops import make_rng, record_served, set_backend

RNG = make_rng(1, 2)
IMPLEMENTATIONS = ["fastseq", "eager", "compiled"]
FORWARD, BOTH = "forward", "forward + backward"
DIRECTIONS = [FORWARD, BOTH]
DTYPES = ["float32", "bfloat16"]
PRECISIONS = ["float32", AUTOCAST := "bfloat16 products"]  # autocast over float32: what `precision: bf16` trains with
EVENTS, WIDTH = 2048, 128
ML_1M_ITEMS, BEAUTY_ITEMS = 3416, 54_542

# Lengths of the windows of one batch: the deciles of the data sets' own windows, adding up to 2,048 events.
LENGTHS = {
    "ml-1m L=200": [200] * 6 + [160, 130, 110, 90, 76, 65, 53, 45, 38, 30, 23, 15, 13],
    "ml-1m L=50": [50] * 35 + [45, 40, 37, 34, 30, 26, 23, 20, 16, 12, 9, 6],
    "beauty L=50": [50, 50, 40, 40, 40, 28, 28, 28, 28, 24] + [20] * 6 + [16] * 8 + [13] * 9 + [11] * 9 + [9] * 9
    + [8] * 14 + [7] * 25 + [6] * 35 + [5] * 50 + [4] * 100,
}  # fmt: skip

Function = Callable[..., Any]  # called as function(p, *leaves): a tensor or a tuple of them
# Error allowed to an op, relative in the norm, for rounding and sums in another order. PyTorch's half-precision chains
# round between their parts and may lose more; that does not make them rivals of another function.
RIVALS = 4
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
_correct: set[tuple[str, str]] = set()


def offsets_of(lengths: Sequence[int]) -> Tensor:
    """int32 [B + 1], as the ops take them."""
    return torch.tensor([0, *lengths]).cumsum(0).int()


def padded_rows(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows [B, longest] of a jagged batch (past the end: a sequence's last one again), and which of them are real."""
    position, length = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
    return offsets_of(lengths)[:-1, None].long() + torch.minimum(position, length - 1), position < length


def measure(
    benchmark: Any,
    implementation: str,
    functions: Mapping[str, Function],
    leaves: Sequence[Tensor],
    upstream: Tensor | None = None,
    *,
    op: str,
    shape: str,
    direction: str = FORWARD,
    dtype: str = "float32",
    dropout_p: float = 0.0,
    tolerance: float | None = None,
    valid: Callable[[Any], bool] | None = None,
    no_compile: str = "",
) -> None:
    """Times ``functions[implementation](p, *leaves)``, after its result has passed the check.

    "fastseq" must be served by the C++ path and match its reference in float32, dropout mask included; the others draw
    other masks and must match it without dropout. Gradients of all floating leaves are compared and, for "forward +
    backward", timed with ``upstream``; without ``upstream`` there are none.

    Args:
        dtype: floating leaves are cast to it; AUTOCAST: they are float32, under autocast to bfloat16.
        tolerance: of the error relative in the norm; None: that of the type. Integers must be equal.
        valid: judges a result of an implementation that draws random numbers of its own, in place of the reference.
        no_compile: why there is no "compiled"; skips it.
    """
    if implementation == "compiled" and no_compile:
        pytest.skip(no_compile)
    autocast = dtype == AUTOCAST
    kind = torch.float32 if autocast else getattr(torch, dtype)
    leaves = [x.to(kind) if x.is_floating_point() else x for x in leaves]
    functions = {key: _under_autocast(function) if autocast else function for key, function in functions.items()}
    name = f"{op} {shape}, {dtype}"
    if implementation == "compiled":
        torch._dynamo.reset()  # each case is compiled for its own shapes
        functions["compiled"] = torch.compile(functions["eager"])
    if (name, implementation) not in _correct:
        limit = TOLERANCE.get(torch.bfloat16 if autocast else kind, 0.0) if tolerance is None else tolerance
        _check(implementation, functions, leaves, upstream, dropout_p, limit, valid)
        _correct.add((name, implementation))
    backward = direction == BOTH and upstream is not None
    p = dropout_p if backward else 0.0
    benchmark.group = f"{name}, {direction}"
    benchmark.extra_info |= {
        "op": op, "shape": shape, "direction": direction, "dtype": dtype, "implementation": implementation,
        "dropout": p, "threads": torch.get_num_threads(),
    }  # fmt: skip
    run, gradient = functions[implementation], None if upstream is None else upstream.to(kind)
    for x in leaves:
        x.requires_grad_(backward and x.is_floating_point())
    with torch.set_grad_enabled(backward):
        call = step if backward else _forward
        call(run, p, leaves, gradient)  # compiles, and warms up
        benchmark(call, run, p, leaves, gradient)


def _under_autocast(function: Function) -> Function:
    def call(p: float, *leaves: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return function(p, *leaves)

    return call


def _forward(function: Function, p: float, leaves: Sequence[Tensor], upstream: Tensor | None) -> Any:
    return function(p, *leaves)


def step(function: Function, p: float, leaves: Sequence[Tensor], upstream: Tensor | None) -> list[Tensor]:
    """The outputs of ``function(p, *leaves)`` and, with ``upstream``, the gradients of all floating leaves."""
    output = function(p, *leaves)
    if upstream is None:
        return list(output) if isinstance(output, tuple) else [output]
    wanted = [x for x in leaves if x.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, wanted, upstream.to(output.dtype))]


def _check(
    implementation: str,
    functions: Mapping[str, Function],
    leaves: Sequence[Tensor],
    upstream: Tensor | None,
    dropout_p: float,
    tolerance: float,
    valid: Callable[[Any], bool] | None,
) -> None:
    """Asserts that an implementation does what the op's reference does."""

    def result(function: Function, p: float, kind: torch.dtype | None = None) -> list[Tensor]:
        copies = [x.detach().clone() for x in leaves]  # an op may work in place
        if kind is not None:
            copies = [x.to(kind) if x.is_floating_point() else x for x in copies]
        if upstream is None:
            return step(function, p, copies, None)
        for x in copies:
            x.requires_grad_(x.is_floating_point())
        given = upstream.to(leaves[0].dtype) if leaves[0].is_floating_point() else upstream
        return step(function, p, copies, given)

    ours = implementation == "fastseq"
    if not ours and valid is not None:
        assert valid(functions[implementation](0.0, *[x.clone() for x in leaves])), f"{implementation}: not valid"
        return
    p = dropout_p if ours else 0.0
    with record_served() as served:
        found = result(functions[implementation], p)
    if ours:
        assert served and {backend for _, backend in served} == {"cpu"}
    with set_backend("reference"):
        limit = tolerance if ours else RIVALS * tolerance
        assert_close(found, result(functions["fastseq"], p, torch.float32), limit)


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Relative error in the norm, so that a wrong row shows and rounding does not; integers are equal."""
    for x, y in zip(found, expected, strict=True):
        if not y.is_floating_point():
            assert torch.equal(x, y), "other integers than the reference"
            continue
        error, size = (x.float() - y).norm().item(), y.norm().item()
        assert error <= tolerance * size, f"off by {error:.3g} of {size:.3g}"
