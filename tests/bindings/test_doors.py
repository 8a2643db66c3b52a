"""Every function of fastseq._C: bad arguments are exceptions, never a crash, and threads change no bit.

What a user may get wrong, fastseq.ops says in its own words (tests/ops/test_checks.py); here it is memory that counts.
``make sanitize`` runs this under AddressSanitizer, where a function that lets something through also fails.
FASTSEQ_FUZZ_EXAMPLES sets how many calls of each kind are tried, FASTSEQ_FUZZ_SEED=1 that they are new ones each time
(without it they are the same, so that a green run stays green).
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastseq import _C

from .doors import BUILDERS, Array, Call, Maker

EXAMPLES = int(os.environ.get("FASTSEQ_FUZZ_EXAMPLES", "60"))
ERRORS = (TypeError, ValueError, IndexError, OverflowError)
FLOATS = (np.float32, np.float64)


def every_function(
    *scales: int, kinds: Sequence[type] = FLOATS, share: int = 1
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Tests every function of _C with Makers of these scales; ``share``: one example for that many of EXAMPLES."""
    makers = st.builds(Maker, st.integers(0, 2**32 - 1), st.sampled_from(scales), st.sampled_from(kinds))
    fuzzed = settings(
        max_examples=max(3, EXAMPLES // share), deadline=None, database=None,
        derandomize=not os.environ.get("FASTSEQ_FUZZ_SEED"),
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip
    return lambda test: pytest.mark.parametrize("name", BUILDERS)(fuzzed(given(maker=makers)(test)))


def call(name: str, arguments: dict[str, Any]) -> Any:
    return getattr(_C, name)(*arguments.values())


def expect_error(name: str, arguments: dict[str, Any], culprit: str) -> None:
    """The call raises one of ERRORS, with a message that names ``culprit``."""
    with pytest.raises(ERRORS, match=rf"\b{culprit}\b"):
        call(name, arguments)


def expect_no_crash(name: str, arguments: dict[str, Any]) -> None:
    """The call works, or raises one of ERRORS with a message that names some argument."""
    try:
        call(name, arguments)
    except ERRORS as error:
        assert any(re.search(rf"\b{argument}\b", str(error)) for argument in arguments), f"{name}: {error}"


def test_every_function_is_here() -> None:
    functions = {name for name in dir(_C) if not name.startswith("_")}
    assert functions - set(BUILDERS) == {"isa", "has_bfloat16_products"}, "these take no arguments; others belong here"


@every_function(*range(41))
def test_valid_arguments(name: str, maker: Maker) -> None:
    call(name, BUILDERS[name](maker).arguments)


# ---- how an array is broken; None where this one cannot be


def _other_type(rng: np.random.Generator, x: Array) -> Array:
    kinds = [np.float16, np.int8, np.int16, np.uint32, np.uint64, np.bool_, np.complex128, np.object_, ">f4", ">i8"]
    with np.errstate(invalid="ignore", over="ignore"):
        return x.astype(kinds[rng.integers(len(kinds))])


def _strides(rng: np.random.Generator, x: Array) -> Array | None:
    axis = int(rng.integers(x.ndim))
    spread = np.repeat(x, 2, axis)
    index = [slice(None)] * x.ndim
    index[axis] = slice(None, None, (2, -2)[rng.integers(2)])
    ways = [spread[tuple(index)], np.asfortranarray(x), np.broadcast_to(x[:1], x.shape) if len(x) else x]
    way = ways[rng.integers(len(ways))]
    return None if way.flags.c_contiguous else way


def _misaligned(rng: np.random.Generator, x: Array) -> Array | None:
    memory = np.zeros(x.nbytes + 1, np.uint8)[1:]
    moved = memory.view(x.dtype).reshape(x.shape)
    moved[...] = x
    return None if moved.flags.aligned else moved


def _rank(rng: np.random.Generator, x: Array) -> Array:
    ways = [x[None], x[..., None], x.reshape(-1), np.zeros((), x.dtype)]
    return ways[rng.integers(len(ways))]


def _length(rng: np.random.Generator, x: Array) -> Array:
    axis, change = int(rng.integers(x.ndim)), int(rng.integers(-3, 4))
    size = x.shape[axis] + change
    return np.ascontiguousarray(x.take(np.arange(max(size, 0)), axis, mode="clip")) if x.size else np.resize(x, 1)


def _empty(rng: np.random.Generator, x: Array) -> Array:
    shape = list(x.shape)
    shape[rng.integers(x.ndim)] = 0
    return np.zeros(shape, x.dtype)


def _vast(rng: np.random.Generator, x: Array) -> Array:
    """No elements, but an axis of 2^40 or so."""
    shape = [0] * x.ndim
    shape[rng.integers(x.ndim)] = int(rng.choice([2**31, 2**32, 2**40, 2**58]))
    return np.zeros(shape if x.ndim > 1 else [0], x.dtype)


def _contents(rng: np.random.Generator, x: Array) -> Array:
    x = x.copy()
    bad = [np.nan, np.inf, -np.inf, 1e38, -1e-45] if x.dtype.kind == "f" else [-1, 2**31 - 1, -(2**31)]
    if x.dtype == np.int8:
        bad = [-1, 127, -128]
    if x.dtype == np.int64:
        bad += [2**63 - 1, -(2**63), 2**32, 2**62]
    if x.size:
        x.flat[rng.integers(x.size)] = bad[rng.integers(len(bad))]
    return x


def arrays_of(case: Call) -> list[str]:
    return [name for name, value in case.arguments.items() if isinstance(value, np.ndarray)]


def pick(rng: np.random.Generator, names: list[str]) -> str | None:
    return names[rng.integers(len(names))] if names else None


@every_function(*range(0, 9))
def test_arrays_of_another_kind(name: str, maker: Maker) -> None:
    """Type, stride, alignment, and not an array at all: no overload takes it."""
    case, rng = BUILDERS[name](maker), maker.rng
    if (culprit := pick(rng, arrays_of(case))) is None:
        return
    if rng.integers(8) == 0:  # right where the argument is optional
        return expect_no_crash(name, {**case.arguments, culprit: None})
    ways: list[Callable[[np.random.Generator, Array], Any]] = [
        _other_type, _strides, _misaligned, lambda rng, x: (3, "x", [1.0, 2.0], object(), b"")[rng.integers(5)],
    ]  # fmt: skip
    way = ways[rng.integers(4)]
    broken = way(rng, case.arguments[culprit])
    if way is _strides and culprit in case.strided:
        expect_no_crash(name, {**case.arguments, culprit: broken})
    elif broken is not None:
        with pytest.raises(TypeError, match="incompatible function arguments"):
            call(name, {**case.arguments, culprit: broken})


@every_function(*range(0, 9))
def test_arrays_of_another_shape_or_content(name: str, maker: Maker) -> None:
    case, rng = BUILDERS[name](maker), maker.rng
    ways: list[Callable[[np.random.Generator, Array], Array]] = [_rank, _length, _empty, _vast, _contents]
    for _ in range(int(rng.integers(1, 3))):  # sometimes two at once
        if (culprit := pick(rng, arrays_of(case))) is not None:
            case.arguments[culprit] = ways[rng.integers(len(ways))](rng, np.atleast_1d(case.arguments[culprit]))
    expect_no_crash(name, case.arguments)


@every_function(*range(0, 9))
def test_types_mixed(name: str, maker: Maker) -> None:
    """One array of floats in the other type that the function knows."""
    case, rng = BUILDERS[name](maker), maker.rng
    if culprit := pick(rng, arrays_of(case)):
        x = case.arguments[culprit]
        swap = {"float32": "float64", "float64": "float32", "int32": "int64", "int64": "int32", "int8": "int16"}
        expect_no_crash(name, {**case.arguments, culprit: x.astype(swap[x.dtype.name])})


@every_function(*range(0, 9), kinds=[np.float32])
def test_outputs_that_cannot_be_written(name: str, maker: Maker) -> None:
    case, rng = BUILDERS[name](maker), maker.rng
    if culprit := pick(rng, sorted(case.outputs & set(arrays_of(case)))):
        case.arguments[culprit].flags.writeable = False
        with pytest.raises(ValueError, match="not writeable"):
            call(name, case.arguments)


@every_function(*range(1, 9), kinds=[np.float32])
def test_ids_out_of_range(name: str, maker: Maker) -> None:
    case, rng = BUILDERS[name](maker), maker.rng
    culprit = pick(rng, sorted(ids for ids in case.ids if case.arguments[ids].size))
    if culprit is None:
        return
    low, high = case.ids[culprit]
    x = case.arguments[culprit] = case.arguments[culprit].copy()
    limits = np.iinfo(x.dtype)
    x.flat[rng.integers(x.size)] = [low - 1, high, limits.min, limits.max][rng.integers(4)]
    expect_error(name, case.arguments, culprit)


@every_function(*range(1, 9), kinds=[np.float32])
def test_offsets(name: str, maker: Maker) -> None:
    """That decrease, start elsewhere, stop short or overrun."""
    case, rng = BUILDERS[name](maker), maker.rng
    if (culprit := pick(rng, sorted(case.offsets))) is None:
        return
    x, total = case.arguments[culprit].copy(), case.offsets[culprit]
    x[(0, -1, rng.integers(x.size))[rng.integers(3)]] = [-1, total + 1, total - 1, 2**31 - 1, -(2**31)][rng.integers(5)]
    if x[0] != 0 or x[-1] != total or (np.diff(x) < 0).any():
        expect_error(name, {**case.arguments, culprit: x}, culprit)


@every_function(*range(0, 9))
def test_scalars(name: str, maker: Maker) -> None:
    case, rng = BUILDERS[name](maker), maker.rng
    scalars = [name for name, value in case.arguments.items() if isinstance(value, int | float | str)]
    if (culprit := pick(rng, scalars)) is None:
        return
    if rng.integers(8) == 0:
        return expect_no_crash(name, {**case.arguments, culprit: None})
    valid = case.arguments[culprit]
    if rng.integers(3) == 0:
        wrong: list[Any] = [object(), 1j, [1], np.zeros(3)] + ([] if isinstance(valid, str) else [b"x", "x", "1"])
        wrong += [1.5] if isinstance(valid, int) else []
        with pytest.raises(TypeError, match="incompatible function arguments"):
            call(name, {**case.arguments, culprit: wrong[rng.integers(len(wrong))]})
        return
    values: list[Any] = ["", "bpr", "ünknown"]
    if isinstance(valid, float):
        values = [float("nan"), float("inf"), -float("inf"), -0.25, 1.0, 1e308]
    elif isinstance(valid, int):
        values = [-(2**63), -(2**31), -1, 0, 1, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, -(2**63) - 1, 2**200]
    value = values[rng.integers(len(values))]
    arguments = {**case.arguments, culprit: value}
    outside = {"threads": lambda: not 1 <= value <= 1024, "p": lambda: not 0 <= value < 1}
    if outside.get(culprit, lambda: isinstance(value, int) and not -(2**63) <= value < 2**63)():
        expect_error(name, arguments, culprit)
    else:
        expect_no_crash(name, arguments)


@every_function(30, 120, 400, share=10)
def test_threads_change_no_bit(name: str, maker: Maker) -> None:
    """One, two and eight threads write the same bits."""
    results = []
    for threads in (1, 2, 8):
        case = BUILDERS[name](copy.deepcopy(maker))
        if "threads" not in case.arguments:
            return
        case.arguments["threads"] = threads
        returned = call(name, case.arguments)
        written = {key: case.arguments[key] for key in case.outputs if case.arguments[key] is not None}
        results.append((returned, {key: value.tobytes() for key, value in written.items()}))
    assert results[1] == results[0] and results[2] == results[0]


@every_function(30, 120, kinds=[np.float32], share=20)
def test_threads_that_call_side_by_side(name: str, maker: Maker) -> None:
    """As the loader's thread does beside the training: the same inputs, outputs of their own."""

    def outputs(case: Call) -> dict[str, bytes]:
        call(name, case.arguments)
        return {key: x.tobytes() for key in sorted(case.outputs) if (x := case.arguments[key]) is not None}

    cases = [BUILDERS[name](copy.deepcopy(maker)) for _ in range(5)]
    for case in cases[1:]:
        case.arguments |= {key: x for key, x in cases[0].arguments.items() if key not in case.outputs}
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(outputs, cases[1:]))
    assert results == [outputs(cases[0])] * 4
