"""dropout: every implementation against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from fastseq import ops
from fastseq.ops import dropout, make_rng

from .backends import check_cpu, check_threads, check_triton, needs_triton, run

OPS = {"dropout"}
RNG = make_rng(17, 4)


def op(x: Tensor) -> Tensor:
    return dropout(x, 0.3, RNG.to(x.device), 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (63,), (3, 111), (5, 2, 65), (700, 24)])
def test_accuracy(shape: tuple[int, ...], dtype: torch.dtype, poisoned_empty: None) -> None:
    check_cpu(op, {"x": torch.randn(shape)}, torch.randn(shape), dtype, OPS)


@needs_triton
@pytest.mark.parametrize("shape", [(1, 1), (63,), (3, 111), (5, 2, 65), (9, 260), (700, 3), (0, 8)])
def test_triton(shape: tuple[int, ...], poisoned_empty: None) -> None:
    """One product and one rounding: the bits of the reference, mask included."""
    x, upstream = torch.randn(shape), torch.randn(shape)
    check_triton(op, {"x": x}, upstream, OPS)
    if not torch.cuda.is_available():
        expected = run(op, {"x": x}, upstream, "reference", OPS)
        for name, y in run(op, {"x": x}, upstream, "triton", OPS).items():
            assert torch.equal(y, expected[name]), name


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_scale(p: float) -> None:
    y = dropout(torch.ones(400, 256), p, RNG)
    kept = y != 0
    deviation = (p * (1 - p) / y.numel()) ** 0.5
    assert abs(kept.double().mean().item() - (1 - p)) < 5 * deviation
    assert torch.equal(y[kept], torch.full_like(y[kept], 1 / (1 - p)))


def test_gradient_uses_the_same_mask() -> None:
    x = torch.randn(9, 70)
    results = run(op, {"x": x}, torch.ones(9, 70), "cpu", OPS)
    assert torch.equal(results["gradient of x"] != 0, results["output"] != 0)


def test_zero_probability_is_the_identity() -> None:
    x = torch.randn(3, 4)
    assert dropout(x, 0.0) is x


def test_dropped_infinities_are_zero() -> None:
    y = dropout(torch.full((4, 64), torch.inf), 0.5, RNG)
    assert set(y.unique().tolist()) == {0.0, torch.inf}


def test_empty() -> None:
    assert run(op, {"x": torch.zeros(0, 8)}, torch.zeros(0, 8), "cpu", OPS)["output"].shape == (0, 8)


def test_threads() -> None:
    check_threads(op, {"x": torch.randn(301, 130)}, torch.randn(301, 130))


def test_step_does_not_recompile() -> None:
    """seed and step travel in a tensor: a new step gives a new mask from the same graph."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, rng: dropout(x, 0.3, rng, 6), fullgraph=True, backend=counter)
    x = torch.ones(4, 64)
    for step in range(3):
        rng = make_rng(1, step)
        assert torch.equal(compiled(x, rng), dropout(x, 0.3, rng, 6))
    assert counter.frame_count == 1


def test_errors() -> None:
    x = torch.zeros(2, 3)
    for p in (-0.5, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"^p is .*expected 0 <= p < 1"):
            dropout(x, p, RNG)
    with pytest.raises(ValueError, match="x has no dimensions"):
        dropout(torch.tensor(1.0), 0.5, RNG)
    with pytest.raises(ValueError, match="rng is None"):
        dropout(x, 0.5)
    with pytest.raises(ValueError, match=r"rng is torch.int64 \[3\]"):
        dropout(x, 0.5, torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("site", [-1, 0x8000])
def test_sites_of_the_samplers_are_refused(site: int) -> None:
    """By every op with a mask, which would otherwise share its words with the negatives."""
    x, v, offsets = torch.ones(2, 4), torch.ones(4), torch.tensor([0, 2], dtype=torch.int32)
    heads, options = x.view(2, 1, 4), {"dropout_p": 0.5, "rng": RNG, "site": site}
    calls = [
        lambda: dropout(x, 0.5, RNG, site),
        lambda: ops.bias_gelu_dropout(x, v, **options),
        lambda: ops.dropout_add_norm(x, x, v, v, **options),
        lambda: ops.embed_sequence(torch.tensor([0, 1]), offsets, x, **options, padding_idx=None),
        lambda: ops.causal_attention(heads, heads, heads, offsets, max_len=2, **options),
        lambda: ops.last_query_attention(heads[1:], heads, heads, offsets, max_len=2, **options),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"site is {site}, expected 0 <= site <= 0x7fff"):
            call()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_columns(backend: str) -> None:
    assert run(op, {"x": torch.zeros(5, 0)}, torch.zeros(5, 0), backend, OPS)["output"].shape == (5, 0)


def test_second_derivatives() -> None:
    """dropout is linear: its second derivative exists. Elsewhere there is an error, never a part left out."""
    x = torch.ones(3, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(op(x).square().sum(), [x], create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), [x])
    assert torch.equal(second, 2 * (op(torch.ones(3, 8))) ** 2)
    with pytest.raises(RuntimeError, match=r"bias_gelu_dropout_backward has no derivative.*create_graph"):
        torch.autograd.grad(ops.bias_gelu_dropout(x, torch.ones(8)).sum(), [x], create_graph=True)


def cross_entropy(reduction: Literal["none", "mean", "sum"]) -> Callable[[Tensor], Tensor]:
    return lambda x: ops.linear_cross_entropy(x, torch.ones(5, 8), torch.tensor([0, 4, 2]), reduction=reduction)


OFFSETS = torch.tensor([0, 1, 3], dtype=torch.int32)
WITHOUT_SECOND: dict[str, Callable[[Tensor], Tensor]] = {
    "attention": lambda x: ops.causal_attention(*x.view(3, 1, 8).expand(3, 3, 1, 8), OFFSETS, max_len=2),
    "norm": lambda x: ops.dropout_add_norm(x, x, torch.ones(8), torch.zeros(8)),
    "gru": lambda x: ops.gru(x[:, :6], torch.ones(6, 2), OFFSETS, max_len=2),
    "sampled": lambda x: ops.sampled_loss(x, torch.ones(5, 8), torch.tensor([0, 4, 2]), torch.ones(3, 2).long()),
    **{f"cross entropy, {r}": cross_entropy(r) for r in ("none", "mean", "sum")},  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WITHOUT_SECOND)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_no_second_derivative_is_left_out_in_silence(name: str, backend: str) -> None:
    x = torch.linspace(-1.0, 1.0, 24).view(3, 8).requires_grad_()
    with ops.set_backend(backend), pytest.raises(RuntimeError, match="leave out create_graph=True"):
        torch.autograd.grad(WITHOUT_SECOND[name](x).sum(), [x], create_graph=True)
