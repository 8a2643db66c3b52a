"""Caser's shared convolutions against one padded window per history, and against nn.Conv2d as WarpRec stacks it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq import ops
from fastseq.ops import record_served
from fastseq.ops.reference import caser_windows as reference
from tests.ops.backends import DEVICE, cast, check_same_on_threads, needs_triton, run
from tests.ops.compare import assert_accurate, relative_error

FLOATS = (0, 4, 5, 6, 7, 8)  # the differentiable arguments
NAMES = ("x", "offsets", "sequences", "stops", "weight_h", "bias_h", "weight_v", "bias_v", "padding_row")
Arguments = list[Tensor]
forward = torch.ops.fastseq.caser_windows
backward = torch.ops.fastseq.caser_windows_backward


def every_stop(length: int) -> Iterable[int]:
    return range(length + 1)


def last_stop(length: int) -> Iterable[int]:
    return [length]


def make(
    length: int,
    d: int,
    n_h: int,
    n_v: int,
    lengths: Iterable[int],
    stops_of: Callable[[int], Iterable[int]] = every_stop,
    *,
    dtype: torch.dtype = torch.float64,
    whole: bool = False,
    padding: float = 1.0,
) -> tuple[Arguments, Tensor]:
    """Arguments, the histories in random order, and an upstream gradient; whole numbers make ties exact."""
    sizes = list(lengths)
    offsets = torch.tensor([0, *sizes]).cumsum(0).int()
    pairs = [(s, int(offsets[s]) + stop) for s, size in enumerate(sizes) for stop in stops_of(size)]
    pairs = [pairs[i] for i in torch.randperm(len(pairs))]
    index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape).to(dtype) if whole else torch.randn(*shape).to(dtype)

    taps = length * (length + 1) // 2
    arguments = [
        numbers(int(offsets[-1]), d),
        offsets,
        index[:, 0].contiguous(),
        index[:, 1].contiguous(),
        numbers(taps, n_h, d),
        numbers(length, n_h),
        numbers(n_v, length),
        numbers(n_v),
        numbers(d) * padding,
    ]
    return arguments, numbers(len(pairs), n_v * d + length * n_h)


def conv2d_stack(arguments: Arguments) -> Tensor:
    """The input of fc1 in WarpRec's Caser, from nn.Conv2d's function and max_pool1d."""
    x, offsets, sequences, stops, weight_h, bias_h, weight_v, bias_v, padding_row = arguments
    length, n_h = bias_h.shape
    windows = []
    for sequence, stop in zip(sequences.tolist(), stops.tolist(), strict=True):
        history = x[max(int(offsets[sequence]), stop - length) : stop]
        windows.append(torch.cat([history, padding_row.expand(length - len(history), -1)]))
    images = torch.stack(windows)[:, None]
    outputs = []
    if len(weight_v):
        outputs.append(F.conv2d(images, weight_v[:, None, :, None], bias_v).flatten(1))
    for height in range(1, length + 1) if n_h else ():
        first = height * (height - 1) // 2
        kernel = weight_h[first : first + height].transpose(0, 1)[:, None]
        convolved = F.conv2d(images, kernel, bias_h[height - 1]).squeeze(3).relu()
        outputs.append(F.max_pool1d(convolved, convolved.shape[2]).squeeze(2))
    return torch.cat(outputs, dim=1)


def gradients(function: Callable[[Arguments], Tensor], arguments: Arguments, upstream: Tensor) -> list[Tensor]:
    leaves = [a.detach().requires_grad_(i in FLOATS) for i, a in enumerate(arguments)]
    output = function(leaves)
    return list(torch.autograd.grad(output, [leaves[i] for i in FLOATS], upstream, materialize_grads=True))


def public(arguments: Arguments) -> Tensor:
    with record_served() as calls:
        output = ops.caser_windows(*arguments)
    assert calls == [("caser_windows", "cpu")]
    return output


def plain(arguments: Arguments) -> Tensor:
    return reference.caser_windows(*arguments)[0]


def in_float64(arguments: Arguments) -> Arguments:
    return [a.double() if a.is_floating_point() else a for a in arguments]


def assert_accurate_results(results: list[Tensor], arguments: Arguments, upstream: Tensor) -> None:
    """The output and its six gradients."""
    same = [plain(arguments), *gradients(plain, arguments, upstream)]
    exact = in_float64(arguments)
    exact = [plain(exact), *gradients(plain, exact, upstream.double())]
    assert_accurate(("output", *(f"gradient of {NAMES[i]}" for i in FLOATS)), results, same, exact)


def assert_close(x: Tensor, expected: Tensor, name: str) -> None:
    assert x.shape == expected.shape, name
    assert relative_error(x, expected) < 1e-12, name


SIZES = ("length", "d", "n_h", "n_v")
SHAPES = [(1, 4, 2, 2), (2, 3, 1, 1), (5, 8, 3, 2), (7, 5, 8, 4), (4, 6, 17, 1), (6, 8, 0, 2), (6, 8, 3, 0)]


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("padding", [0.0, 1.0])
@pytest.mark.parametrize("stride", [1, 2, 0])
@pytest.mark.parametrize(SIZES, [*SHAPES, (11, 9, 5, 3)])
def test_equals_the_direct_forms(length: int, d: int, n_h: int, n_v: int, stride: int, padding: float) -> None:
    """Sequences of 0 … 3L rows; every stop, every second one, or the last alone (stride 0)."""

    def stops_of(size: int) -> Iterable[int]:
        return range(size % stride, size + 1, stride) if stride else [size]

    arguments, upstream = make(length, d, n_h, n_v, range(3 * length + 1), stops_of, padding=padding)
    assert_close(public(arguments), plain(arguments), "output")
    assert_close(public(arguments), conv2d_stack(arguments), "output")
    ours = gradients(public, arguments, upstream)
    for expected in (gradients(plain, arguments, upstream), gradients(conv2d_stack, arguments, upstream)):
        for i, x, y in zip(FLOATS, ours, expected, strict=True):
            assert_close(x, y, f"gradient of {NAMES[i]}")


@pytest.mark.parametrize(SIZES, [*SHAPES, (11, 9, 5, 3)])
def test_the_first_of_equal_maxima_gets_the_gradient(length: int, d: int, n_h: int, n_v: int) -> None:
    """Small whole numbers: ties abound and every sum is exact, so results are equal bit for bit."""
    for stops_of in (every_stop, last_stop):
        arguments, upstream = make(length, d, n_h, n_v, range(3 * length + 1), stops_of, whole=True)
        output, position = forward(*arguments)
        expected, expected_position = reference.caser_windows(*arguments)
        assert torch.equal(output, expected)
        assert torch.equal(position, expected_position)
        ours = backward(upstream, *arguments, position)
        theirs = gradients(conv2d_stack, arguments, upstream)
        for i, x, y in zip(FLOATS, ours, theirs, strict=True):
            assert torch.equal(x, y), NAMES[i]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sharing_changes_no_bit(dtype: torch.dtype) -> None:
    """A history's output is the same alone, among others, in any order."""
    arguments, _ = make(9, 20, 3, 2, [0, 4, 9, 30, 13, 70], dtype=dtype)
    shared = public(arguments)
    sequences, stops = arguments[2], arguments[3]
    for i in range(len(stops)):
        alone = [*arguments[:2], sequences[i : i + 1], stops[i : i + 1], *arguments[4:]]
        assert torch.equal(public(alone)[0], shared[i])


def test_threads_and_chunks_change_no_bit() -> None:
    arguments, upstream = make(12, 24, 5, 3, [40, 0, 300, 11, 600, 3, 25, 12], dtype=torch.float32)

    def compute() -> list[Tensor]:
        output, position = forward(*arguments)
        return [output, position, *backward(upstream, *arguments, position)]

    check_same_on_threads(compute)


@pytest.mark.parametrize(
    (*SIZES, "dtype"),
    [
        (20, 64, 8, 4, torch.float32),
        (30, 60, 2, 1, torch.float32),
        *((13, 24, 3, 2, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)),
    ],
)
def test_is_as_accurate_as_pytorch(length: int, d: int, n_h: int, n_v: int, dtype: torch.dtype) -> None:
    sizes = [0, 1, length - 1, length + 1, 2 * length + 7]
    arguments, upstream = make(length, d, n_h, n_v, sizes, dtype=dtype)
    # Rounding may move a maximum and with it the gradient; from the same positions there is nothing to move.
    position = reference.caser_windows(*in_float64(arguments))[1]
    assert_accurate_results([public(arguments), *backward(upstream, *arguments, position)], arguments, upstream)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 3]])
def test_without_histories(lengths: list[int]) -> None:
    arguments, upstream = make(4, 6, 2, 3, lengths, lambda length: [])
    assert public(arguments).shape == (0, 3 * 6 + 4 * 2)
    for gradient in gradients(public, arguments, upstream):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_an_empty_history_is_padding_alone() -> None:
    arguments, _ = make(5, 6, 3, 2, [0])
    full, _ = make(5, 6, 3, 2, [5], last_stop)
    full[4:] = arguments[4:]
    full[0] = arguments[8].repeat(5, 1)
    torch.testing.assert_close(public(arguments), public(full), rtol=1e-12, atol=1e-12)


def test_nan_is_not_hidden_by_the_maximum() -> None:
    arguments, _ = make(5, 6, 3, 0, [12], last_stop)
    arguments[0][9] = float("nan")
    assert torch.equal(public(arguments).isnan(), plain(arguments).isnan())
    assert public(arguments).isnan().all()


def test_of_one_sequence_only_its_own_rows_count() -> None:
    arguments, upstream = make(5, 6, 3, 2, [7, 9, 8], lambda length: [length] if length == 9 else [])
    poisoned = [a.clone() for a in arguments]
    poisoned[0][:7] = poisoned[0][16:] = float("nan")
    assert torch.equal(public(poisoned), public(arguments))
    dx = gradients(public, poisoned, upstream)[0]
    assert torch.equal(dx, gradients(public, arguments, upstream)[0])
    assert not dx[:11].any() and dx[11:16].any()


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of tests reach across several tiles, spans, blocks of filters and runs of rows."""
    from fastseq.kernels import caser_common

    sizes = {"ROWS": 16, "LANES": 16, "WIDTH": 16, "HISTORIES": 4, "VERTICAL": 2, "STEPS": 8, "RUNS": 2, "PART": 4096}
    for name, value in sizes.items():
        monkeypatch.setattr(caser_common, name, value)


def triton(arguments: Arguments, upstream: Tensor, position: Tensor | None = None) -> tuple[Tensor, ...]:
    """Output, positions and the six gradients, with given positions or its own."""
    moved = [a.to(DEVICE) for a in arguments]
    with ops.set_backend("triton"), record_served() as calls:
        output, argmax = forward(*moved)
        grads = backward(upstream.to(DEVICE), *moved, argmax if position is None else position.to(DEVICE))
    assert calls == [("caser_windows", "triton"), ("caser_windows_backward", "triton")]
    return tuple(t.cpu() for t in (output, argmax, *grads))


@needs_triton
@pytest.mark.usefixtures("poisoned_empty", "small_tiles")
@pytest.mark.parametrize(
    (*SIZES, "stops_of"),
    [
        *((*shape, last_stop) for shape in ((2, 17, 1, 1), (6, 8, 3, 0), (15, 3, 1, 1))),
        *((*shape, every_stop) for shape in ((1, 4, 2, 2), (7, 5, 8, 4), (4, 18, 17, 1), (6, 8, 0, 2), (9, 3, 2, 3))),
    ],
)
def test_triton_equals_the_reference_bit_for_bit(
    length: int, d: int, n_h: int, n_v: int, stops_of: Callable[[int], Iterable[int]]
) -> None:
    """Small whole numbers: ties abound and every sum is exact. Sequences empty, short, of L rows, and of many tiles."""
    sizes = [0, 1, length, 2 * length + 31, 0, length - 1]
    arguments, upstream = make(length, d, n_h, n_v, sizes, stops_of, whole=True, dtype=torch.float32)
    twice = torch.arange(len(arguments[2])) // 2 if stops_of is last_stop else slice(None)  # some histories twice
    arguments[2], arguments[3] = arguments[2][twice], arguments[3][twice]
    output, position, *grads = triton(arguments, upstream)
    expected, expected_position = reference.caser_windows(*arguments)
    assert torch.equal(output, expected)
    assert torch.equal(position, expected_position)
    for i, x, y in zip(FLOATS, grads, gradients(plain, arguments, upstream), strict=True):
        assert torch.equal(x, y), NAMES[i]


@needs_triton
@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize(
    (*SIZES, "dtype"),
    [
        (20, 64, 8, 4, torch.float32),
        (13, 24, 3, 2, torch.float16),
        (33, 7, 1, 5, torch.float32),
        pytest.param(
            20, 64, 8, 4, torch.bfloat16,
            marks=pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter has no bfloat16 product"),
        ),
    ],
)  # fmt: skip
def test_triton_is_as_accurate_as_pytorch(length: int, d: int, n_h: int, n_v: int, dtype: torch.dtype) -> None:
    """The constants that ship. As on the CPU, from the same positions; and the same bits twice."""
    sizes = [0, 1, length - 1, 2 * length + 7]
    arguments, upstream = make(length, d, n_h, n_v, sizes, lambda size: range(size % 5, size + 1, 5), dtype=dtype)
    position = reference.caser_windows(*in_float64(arguments))[1]
    results = triton(arguments, upstream, position)
    if length == 20:
        assert all(torch.equal(a, b) for a, b in zip(results, triton(arguments, upstream, position), strict=True))
    assert_accurate_results([results[0], *results[2:]], arguments, upstream)


@needs_triton
@pytest.mark.usefixtures("poisoned_empty", "small_tiles")
def test_triton_shares_without_a_trace() -> None:
    """A history's output is the same alone and among others; other sequences' rows never reach it, nor its gradient.
    Rows that are not finite are a factor of the gradient of weight_h, whoever reads them."""
    arguments, upstream = make(5, 6, 3, 2, [7, 9, 8], dtype=torch.float32)
    shared = triton(arguments, upstream)[0]
    for i in range(0, len(arguments[3]), 9):
        alone = [*arguments[:2], arguments[2][i : i + 1], arguments[3][i : i + 1], *arguments[4:]]
        assert torch.equal(triton(alone, upstream[i : i + 1])[0][0], shared[i])
    arguments, upstream = make(5, 6, 3, 2, [7, 9, 8], lambda n: [n] if n == 9 else [], dtype=torch.float32)
    poisoned = [a.clone() for a in arguments]
    poisoned[0][:7] = poisoned[0][16:] = float("nan")
    for i, (x, y) in enumerate(zip(triton(poisoned, upstream), triton(arguments, upstream), strict=True)):
        assert i == 3 or torch.equal(x, y)
    poisoned = [a.clone() for a in arguments]
    poisoned[0][13] = float("nan")
    assert torch.equal(triton(poisoned, upstream)[0].isnan(), plain(poisoned).isnan())


@needs_triton
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 3]])
def test_triton_without_histories_and_of_padding_alone(lengths: list[int]) -> None:
    arguments, upstream = make(4, 6, 2, 3, lengths, lambda length: [], dtype=torch.float32)
    output, _, *grads = triton(arguments, upstream)
    assert output.shape == (0, 3 * 6 + 4 * 2) and not any(g.any() for g in grads)
    arguments, upstream = make(4, 6, 2, 3, [0, 0], dtype=torch.float32)
    inputs = dict(zip(NAMES, arguments, strict=True))
    exact = run(ops.caser_windows, cast(inputs, torch.float64), upstream, "reference", set())
    for name, x in run(ops.caser_windows, inputs, upstream, "triton", set()).items():
        torch.testing.assert_close(x, exact[name].float(), rtol=1e-5, atol=1e-5)
