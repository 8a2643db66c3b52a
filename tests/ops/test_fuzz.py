"""Every public op with arguments that do not fit: an error that names one of them, whatever serves; never a crash.

FASTSEQ_FUZZ_EXAMPLES and FASTSEQ_FUZZ_SEED: as of tests/bindings/test_doors.py.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastseq import ops

from .backends import moved, needs_triton
from .calls import ALL, CALLS, differentiable, results

EXAMPLES = int(os.environ.get("FASTSEQ_FUZZ_EXAMPLES", "60"))
BACKENDS = ["cpu", "reference"]
DTYPES = [torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float16, torch.float64]
SCALARS: list[Any] = [-1, 0, 1, 2**31, 2**62, -0.5, 0.999, float("nan"), float("inf"), "", "none", None]


def _contents(rng: np.random.Generator, x: Tensor) -> Tensor:
    values = [-1, 2**31 - 1, -(2**31)] + ([2**62, 10] if x.dtype == torch.int64 else [])
    if x.dtype == torch.uint8:
        values = [255]
    if x.is_floating_point():
        values = [float("nan"), float("inf"), -3e38]
    x = x.clone()
    if x.numel():
        x.view(-1)[rng.integers(x.numel())] = values[rng.integers(len(values))]
    return x


def _size(rng: np.random.Generator, x: Tensor) -> Tensor:
    axis = int(rng.integers(x.dim()))
    size = max(0, x.shape[axis] + int(rng.integers(-3, 4)))
    indices = torch.arange(size).clamp(max=max(x.shape[axis] - 1, 0))
    return x.index_select(axis, indices) if x.numel() else x


def _rank(rng: np.random.Generator, x: Tensor) -> Tensor:
    return [x[None], x[..., None], x.reshape(-1), x.new_zeros(()), x.new_zeros(0)][rng.integers(5)]


def _strides(rng: np.random.Generator, x: Tensor) -> Tensor:
    return [torch.stack((x, x), -1)[..., 0], x.flip(0).contiguous().flip(0), x.new_zeros(1).expand(x.shape)][
        rng.integers(3)
    ]


def broken(rng: np.random.Generator, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return SCALARS[rng.integers(len(SCALARS))]
    if rng.integers(8) == 0:
        return None
    ways = [_contents, _size, _rank, _strides] if value.dim() else [_contents]
    if rng.integers(len(ways) + 1) == 0:
        return value.to(DTYPES[rng.integers(len(DTYPES))])
    return ways[rng.integers(len(ways))](rng, value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_no_argument_crashes(name: str, backend: str) -> None:
    """The same calls in every run: Hypothesis would choose seeds by the modules that happen to be imported."""
    first = EXAMPLES * int(os.environ.get("FASTSEQ_FUZZ_SEED", "0"))
    for seed in range(first, first + EXAMPLES):
        break_a_call(name, backend, seed)


def break_a_call(name: str, backend: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed % 1000)
    arguments = CALLS[name]()
    for _ in range(int(rng.integers(1, 3))):  # sometimes two at once
        culprit = list(arguments)[rng.integers(len(arguments))]
        arguments[culprit] = broken(rng, arguments[culprit])
    try:
        with ops.set_backend(backend):
            results(name, arguments)
    except (ValueError, IndexError) as error:
        assert any(re.search(rf"\b{argument}\b", str(error)) for argument in arguments), f"{name}, seed {seed}: {error}"
    except (TypeError, AttributeError, RuntimeError) as error:
        # Another kind of object altogether, which Python or the schema's types refuse: in their own words.
        assert any(
            value is None or (isinstance(value, str | float | int) and not isinstance(value, type(CALLS[name]()[key])))
            for key, value in arguments.items()
        ), f"{name}, seed {seed}: {type(error).__name__}: {error}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_types_without_a_result_are_named(name: str, backend: str) -> None:
    """Integers and complex numbers in place of every floating argument."""
    for key, value in CALLS[name]().items():
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            continue
        for kind in (torch.int64, torch.complex64, torch.float8_e4m3fn):
            with ops.set_backend(backend), pytest.raises(ValueError, match=rf"{key}\b.* {kind}"):
                results(name, {**CALLS[name](), key: value.to(kind)})


@needs_triton
@pytest.mark.parametrize(
    "name", sorted(set(CALLS) - {"gather_windows", "linear", "sample_negatives", "sample_shared_negatives"})
)
def test_float64_is_for_the_cpu(name: str) -> None:
    """Triton's kernels name a floating argument; linear gives its products to PyTorch."""
    arguments = moved(CALLS[name](), "triton")
    floating = [key for key, x in arguments.items() if isinstance(x, Tensor) and x.is_floating_point()]
    message = r"is torch\.float64: the Triton kernels compute in float32, float64 is for the CPU"
    with ops.set_backend("triton"), pytest.raises(ValueError, match=f"({'|'.join(floating)}) {message}"):
        results(name, arguments | {key: arguments[key].double() for key in floating})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "change"), [(name, change) for name, change in ALL if name != "dropout"])
def test_no_second_derivative_is_left_out_in_silence(name: str, change: dict[str, Any], backend: str) -> None:
    """By every argument that has a gradient: an error, since the formula's derivative is not there."""
    arguments = CALLS[name]() | change
    with ops.set_backend(backend):
        for key in differentiable(name, arguments):
            leaf = arguments[key].requires_grad_()
            loss = results(name, arguments)[0].sum()
            with pytest.raises(RuntimeError, match=r"has no (second )?derivative: leave out create_graph=True"):
                torch.autograd.grad(loss, [leaf], create_graph=True)


@pytest.mark.parametrize("backend", [*BACKENDS, pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("name", ["causal_attention", "last_query_attention", "gru", "gru_sampled_loss"])
def test_a_vast_max_len_costs_nothing(name: str, backend: str) -> None:
    """It bounds the longest sequence: no loop and no launch follows it beyond the rows that there are."""
    arguments = CALLS[name]()
    with ops.set_backend(backend):
        expected = results(name, arguments)[0]
        torch.testing.assert_close(results(name, {**arguments, "max_len": 2**31 - 1})[0], expected)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("linear_cross_entropy", {"softcap": math.inf}),
        ("sampled_loss", {"loss": "gbce", "beta": math.nan}),
        ("sampled_loss", {"loss": "gbce", "beta": -3.0}),
        ("gru_sampled_loss", {"loss": "gbce", "beta": math.inf}),
        ("causal_attention", {"scale": math.nan}),
        ("last_query_attention", {"scale": math.inf}),
    ],
)
def test_numbers_out_of_range_are_named(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{list(change)[-1]} is .*, expected a (positive )?number"):
        results(name, {**CALLS[name](), **change})
