"""ops/gru.py: every implementation against torch.nn.GRU on packed sequences, in float64."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastseq import ops
from tests.ops.backends import DEVICE, check_same_on_threads, check_triton, needs_triton, run
from tests.ops.compare import assert_accurate

LENGTHS = [7, 0, 63, 1, 111, 7, 2, 0, 50, 1, 30]
NAMES = ("h", "grad x_gates", "grad weight_hh", "grad bias_hh")


def inputs(lengths: list[int], hidden: int, bias: bool, dtype: torch.dtype) -> list[Any]:
    """x_gates, weight_hh, bias_hh, upstream gradient."""
    generator = torch.Generator().manual_seed(sum(lengths) + hidden)
    rows = sum(lengths)
    shapes = [(rows, 3 * hidden), (3 * hidden, hidden), (3 * hidden,), (rows, hidden)]
    x, weight, b, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [t.to(dtype) for t in (x, weight * hidden**-0.5)] + [b.to(dtype) if bias else None, grad.to(dtype)]


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def fastseq_gru(lengths: list[int], arguments: list[Any]) -> list[Tensor]:
    copies: list[Any] = [None if a is None else a.clone().requires_grad_() for a in arguments[:3]]
    x, weight, bias = copies
    h = ops.gru(x, weight, offsets_of(lengths), bias_hh=bias, max_len=max([*lengths, 0]))
    leaves = [a for a in (x, weight, bias) if a is not None]
    return [h.detach(), *torch.autograd.grad(h, leaves, arguments[3])]


def pytorch_gru(lengths: list[int], arguments: list[Any], dtype: torch.dtype) -> list[Tensor]:
    """torch.nn.GRU with an identity for weight_ih, so that its input is x_gates."""
    cast: list[Any] = [None if a is None else a.to(dtype) for a in arguments]
    x, weight, bias, grad = cast
    module: Any = torch.nn.GRU(weight.shape[0], weight.shape[1], bias=bias is not None).to(dtype)
    with torch.no_grad():
        module.weight_ih_l0.copy_(torch.eye(weight.shape[0]))
        module.weight_hh_l0.copy_(weight)
        if bias is not None:
            module.bias_ih_l0.zero_()
            module.bias_hh_l0.copy_(bias)
    x = x.clone().requires_grad_()
    full = [part for part in x.split(lengths) if len(part)]
    packed = torch.nn.utils.rnn.pack_sequence(full, enforce_sorted=False)
    out, kept = torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0], batch_first=True)
    h = torch.cat([row[:n] for row, n in zip(out, kept.tolist(), strict=True)])
    leaves = [x, module.weight_hh_l0] + ([module.bias_hh_l0] if bias is not None else [])
    return [h.detach(), *torch.autograd.grad(h, leaves, grad)]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("hidden", "bias"), [(1, True), (7, False), (16, True), (33, True), (128, False)])
def test_equals_nn_gru(backend: str, dtype: torch.dtype, hidden: int, bias: bool, poisoned_empty: None) -> None:
    arguments = inputs(LENGTHS, hidden, bias, dtype)
    with ops.set_backend(backend), ops.record_served() as calls:
        results = fastseq_gru(LENGTHS, arguments)
    assert calls == [("gru", backend), ("gru_backward", backend)]
    same = pytorch_gru(LENGTHS, arguments, dtype)
    exact = pytorch_gru(LENGTHS, arguments, torch.float64)
    assert_accurate(NAMES if bias else NAMES[:3], results, same, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    arguments = inputs(LENGTHS, 24, True, dtype)
    results = fastseq_gru(LENGTHS, arguments)
    exact = pytorch_gru(LENGTHS, arguments, torch.float64)
    for name, result, reference in zip(NAMES, results, exact, strict=True):
        assert result.dtype == dtype
        error = (result.double() - reference).norm() / reference.norm()
        assert error < 1.5 * torch.finfo(dtype).eps, f"{name}: {error}"


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=30), hidden=st.integers(1, 20), bias=st.booleans())
def test_any_jagged_shape(lengths: list[int], hidden: int, bias: bool) -> None:
    arguments = inputs(lengths, hidden, bias, torch.float64)
    results = fastseq_gru(lengths, arguments)
    with ops.set_backend("reference"):
        expected = fastseq_gru(lengths, arguments)
    for name, result, reference in zip(NAMES, results, expected, strict=False):
        torch.testing.assert_close(result, reference, rtol=1e-11, atol=1e-12, msg=name)


def test_the_backward_pass_takes_some_sequences_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = inputs(LENGTHS, 5, True, torch.float64)
    whole = fastseq_gru(LENGTHS, arguments)
    monkeypatch.setattr("fastseq.ops.cpu.gru._SLICE_EVENTS", 60)
    with ops.set_backend("cpu"):
        assert_accurate(NAMES, fastseq_gru(LENGTHS, arguments), whole, whole)


def test_same_bits_for_any_number_of_threads() -> None:
    arguments = inputs(LENGTHS * 4, 40, True, torch.float32)
    check_same_on_threads(lambda: fastseq_gru(LENGTHS * 4, arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_are_exact_to_a_few_ulp_and_never_nan(dtype: torch.dtype) -> None:
    """A zero weight leaves the bare functions: saved is (sigmoid, sigmoid, tanh, 0) of x_gates."""
    magnitude = torch.logspace(-8, 4, 4001, dtype=torch.float64)
    x = torch.cat((-magnitude, torch.zeros(3), magnitude)).to(dtype)
    _, saved = torch.ops.fastseq.gru(
        x.repeat_interleave(3).view(-1, 3), torch.zeros(3, 1, dtype=dtype), offsets_of([1] * len(x)), None, 1
    )
    r, z, n, s = saved.double().unbind(1)
    assert torch.isfinite(saved).all()
    ulp = torch.finfo(dtype).eps
    if dtype == torch.float32:
        close = x.abs() < 87  # below, sigmoid leaves float32's normal range
        sigmoid, tanh = torch.sigmoid(x.double()), torch.tanh(x.double())
        assert ((r - sigmoid).abs() / sigmoid)[close].max() < 4 * ulp
        nonzero = x != 0
        assert ((n - tanh).abs() / tanh.abs())[nonzero].max() < 4 * ulp
    else:
        torch.testing.assert_close(r, torch.sigmoid(x), rtol=8 * ulp, atol=1e-300)
        torch.testing.assert_close(n, torch.tanh(x), rtol=8 * ulp, atol=0)
    assert torch.equal(r, z) and not s.any() and not n[x == 0].any()


def test_nan_and_infinity_are_not_hidden() -> None:
    x = torch.tensor([[0.0, 0.0, float("nan")], [0.0, float("inf"), 1.0]])
    h = ops.gru(x, torch.zeros(3, 1), offsets_of([1, 1]), max_len=1)
    assert h[0].isnan().all() and h[1].item() == 0.0


def test_empty_batch() -> None:
    for lengths in ([], [0, 0]):
        results = fastseq_gru(lengths, inputs(lengths, 5, True, torch.float32))
        assert [list(r.shape) for r in results] == [[0, 5], [0, 15], [15, 5], [15]]
        assert not results[2].any() and not results[3].any()


def test_compiles_once_for_many_lengths() -> None:
    def step(x: Tensor, weight: Tensor, offsets: Tensor, max_len: int) -> Tensor:
        return ops.gru(x, weight, offsets, max_len=max_len).square().sum()

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=True)
    for lengths in ([3, 5], [7, 4], [6, 8]):
        x, weight, _, _ = inputs(lengths, 4, False, torch.float32)
        x.requires_grad_()
        arguments = (x, weight, offsets_of(lengths), max(lengths))
        (grad,) = torch.autograd.grad(compiled(*arguments), [x])
        (expected,) = torch.autograd.grad(step(*arguments), [x])
        torch.testing.assert_close(grad, expected)
    assert counter.frame_count == 1


def test_autocast_keeps_float32_weights() -> None:
    x, weight, _, _ = inputs([4], 8, False, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = ops.gru(x.bfloat16(), weight, offsets_of([4]), max_len=4)
    torch.testing.assert_close(h, ops.gru(x.bfloat16().float(), weight, offsets_of([4]), max_len=4))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_x_gates_decides_the_type(kind: torch.dtype) -> None:
    """Parameters of another type are converted, as the reference does, and get gradients of their own type."""
    arguments = inputs([4, 9], 5, True, torch.float32)
    arguments[0], arguments[3] = arguments[0].to(kind), arguments[3].to(kind)
    results = fastseq_gru([4, 9], arguments)
    with ops.set_backend("reference"):
        expected = fastseq_gru([4, 9], arguments)
    assert [r.dtype for r in results] == [kind, kind, torch.float32, torch.float32]
    for result, other in zip(results, expected, strict=True):
        torch.testing.assert_close(result, other, rtol=0.02 if kind == torch.bfloat16 else 1e-6, atol=1e-2)


def triton_gru(lengths: list[int]) -> Callable[..., Tensor]:
    def op(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return ops.gru(x, weight, offsets_of(lengths).to(x.device), bias_hh=bias, max_len=max([*lengths, 0]))

    return op


BFLOAT16 = pytest.param(
    LENGTHS,
    128,
    True,
    torch.bfloat16,
    marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter computes bfloat16 in float32"),
)
TRITON = [
    ([19, 0, 7, 1, 2, 0, 11], 7, True, torch.float32),
    ([13, 0, 6, 1, 0, 2], 16, False, torch.float16),
    ([3, 0, 9, 1] * 9, 33, True, torch.float32),
    ([5, 1, 0], 100, False, torch.float32),
    ([6, 2], 128, True, torch.float16),
    ([4, 0, 1] * 6, 130, True, torch.float32),  # a product a step
    ([3, 2], 144, False, torch.bfloat16),
    ([5, 0, 3], 20, True, torch.bfloat16),
    ([1], 1, True, torch.float32),
    ([1, 1, 1], 6, False, torch.float32),  # no state before any event
    ([0, 0], 5, True, torch.float32),
    ([], 5, False, torch.float32),
    BFLOAT16,
]


@needs_triton
@pytest.mark.parametrize(("lengths", "hidden", "bias", "dtype"), TRITON)
def test_triton(lengths: list[int], hidden: int, bias: bool, dtype: torch.dtype, poisoned_empty: None) -> None:
    x, weight, b, grad = inputs(lengths, hidden, bias, dtype)
    check_triton(triton_gru(lengths), {"x": x, "weight": weight, "bias": b}, grad, {"gru", "gru_backward"}, dtype)


@needs_triton
@pytest.mark.parametrize(
    ("multiprocessors", "dtype", "precision", "share"),
    [
        (20, torch.float32, "highest", 2),
        (13, torch.float32, "high", 2),
        (7, torch.float16, "highest", 2),
        (4, torch.float16, "highest", 4),
        (1, torch.float16, "highest", 8),
        (6, torch.float32, "high", 16),
    ],
)
def test_triton_sequences_share_programs(
    multiprocessors: int, dtype: torch.dtype, precision: str, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every number that may share one, the last program not full: with the matrix unit and without."""
    if precision == "high" and DEVICE == "cuda":
        pytest.skip("tf32 is coarser than what this compares with")
    module = importlib.import_module("fastseq.kernels.gru")
    monkeypatch.setattr(module, "MULTIPROCESSORS", multiprocessors)
    lengths, hidden, before = [3, 0, 9, 1, 4] * 5, 40, torch.get_float32_matmul_precision()
    x, weight, b, grad = inputs(lengths, hidden, True, dtype)
    torch.set_float32_matmul_precision(precision)
    try:
        constants = module._constants(x, hidden, len(lengths))
        assert (constants["SEQUENCES"], constants["PRECISION"] == "fma") == (share, share == 2 and dtype != torch.half)
        check_triton(triton_gru(lengths), {"x": x, "weight": weight, "bias": b}, grad, {"gru", "gru_backward"}, dtype)
    finally:
        torch.set_float32_matmul_precision(before)


@needs_triton
@pytest.mark.parametrize("hidden", [20, 70, 140])
def test_triton_company_changes_no_bit(hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence's states and gradients are the same alone and in a program with others, whatever their lengths."""
    monkeypatch.setattr("fastseq.kernels.gru.MULTIPROCESSORS", 9)
    lengths = [4] + [1, 6, 0, 3] * 4 + [2]
    x, weight, b, grad = inputs(lengths, hidden, True, torch.float32)
    together = run(triton_gru(lengths), {"x": x, "weight": weight, "bias": b}, grad, "triton", set())
    alone = run(triton_gru([4]), {"x": x[:4], "weight": weight, "bias": b}, grad[:4], "triton", set())
    for name in ("output", "gradient of x"):
        if hidden <= 128:
            assert torch.equal(together[name][:4], alone[name]), name
        else:  # the products are PyTorch's
            torch.testing.assert_close(together[name][:4], alone[name])


@needs_triton
def test_triton_gates_are_accurate_and_never_nan() -> None:
    """As test_gates_are_exact_to_a_few_ulp_and_never_nan; exp on a GPU is good to a few ulp times its argument."""
    magnitude = torch.logspace(-8, 4, 4, dtype=torch.float64).repeat_interleave(5) * torch.linspace(1, 9000, 20)
    x = torch.cat((-magnitude, torch.zeros(3), magnitude)).float()
    with ops.set_backend("triton"):
        h, saved = torch.ops.fastseq.gru(
            x.repeat_interleave(3).view(-1, 3).to(DEVICE),
            torch.zeros(3, 1, device=DEVICE),
            offsets_of([1] * len(x)).to(DEVICE),
            None,
            1,
        )
    assert torch.isfinite(h).all() and torch.isfinite(saved).all()
    r, _, n, a = saved.cpu().double().unbind(1)
    torch.testing.assert_close(r, torch.sigmoid(x.double()), rtol=2e-5, atol=1e-37)
    torch.testing.assert_close(n, torch.tanh(x.double()), rtol=1e-6, atol=0)
    assert not a.any()
    bad = torch.tensor([[0.0, 0.0, float("nan")], [0.0, float("inf"), 1.0]], device=DEVICE)
    with ops.set_backend("triton"):
        h = ops.gru(bad, torch.zeros(3, 1, device=DEVICE), offsets_of([1, 1]).to(DEVICE), max_len=1)
    assert h[0].isnan().all() and h[1].item() == 0.0
