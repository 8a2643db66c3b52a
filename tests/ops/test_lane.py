"""The short way past torch.library and the long one through it: which is taken, and that both do the same."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from fastseq import ops
from fastseq.ops import _lane

from .calls import ALL, CALLS, RNG, differentiable, results
from .test_checks import BAD

GRAD_MODES = {"grad": nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}


def described(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, x.device, x.stride(), x.requires_grad, x.is_inference(), x.tolist()


def outcome(name: str, change: dict[str, Any], grad_mode: Callable[[], AbstractContextManager[Any]]) -> list[Any]:
    """What a call gives, and its gradients where it has some."""
    torch.manual_seed(1)
    arguments = CALLS[name]() | change
    leaves = [arguments[key].requires_grad_() for key in differentiable(name, arguments)]
    with grad_mode():
        outputs = results(name, arguments)
    said: list[Any] = [described(x) for x in outputs]
    if outputs[0].requires_grad:
        said += [None if x is None else described(x) for x in torch.autograd.grad(outputs[0].sum(), leaves)]
    return said


def by_both_ways(patch: pytest.MonkeyPatch, act: Callable[[], Any]) -> tuple[Any, Any]:
    short = act()
    with patch.context() as watched:
        watched.setattr(_lane, "_watched", lambda: True)
        return short, act()


@pytest.mark.parametrize("grad_mode", GRAD_MODES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("name", "change"), [pytest.param(*c, id=f"{c[0]}-{'-'.join(c[1])}") for c in ALL])
def test_both_ways_give_the_same(
    name: str, change: dict[str, Any], backend: str, grad_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits, types, strides and flags, with gradients and without; and the same implementations serve."""
    with ops.set_backend(backend), ops.record_served() as served:
        short, long = by_both_ways(monkeypatch, lambda: outcome(name, change, GRAD_MODES[grad_mode]))
    assert short == long
    assert served[: len(served) // 2] == served[len(served) // 2 :]


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [name for name in CALLS if differentiable(name, CALLS[name]())])
def test_autocast_by_both_ways(name: str, autocast: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the arguments in the narrow type."""
    keys = differentiable(name, CALLS[name]())[::2]

    def act() -> list[Any]:
        torch.manual_seed(1)
        arguments = CALLS[name]()
        change = {key: arguments[key].to(autocast) for key in keys}
        with torch.autocast("cpu", autocast):
            return outcome(name, change, nullcontext)

    short, long = by_both_ways(monkeypatch, act)
    assert short == long


@pytest.mark.parametrize("name", CALLS)
def test_both_ways_raise_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> list[str]:
        errors = []
        for change, *_ in BAD[name]:
            with ops.check_data(True), pytest.raises((ValueError, IndexError)) as raised:
                results(name, CALLS[name]() | change)
            errors.append(f"{type(raised.value).__name__}: {raised.value}")
        return errors

    short, long = by_both_ways(monkeypatch, act)
    assert short == long and short


def test_what_torch_library_refuses_or_converts_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument of another type than the schema's, a number that it converts, a tensor whose sign is a flag."""

    def message(call: Callable[[], Any]) -> str:
        try:
            return str(call().tolist())
        except (RuntimeError, NotImplementedError, TypeError) as error:
            return str(error)

    x = torch.randn(4, 8)
    negated = torch.complex(x, x).conj().imag
    assert negated.is_neg()
    dropout = importlib.import_module("fastseq.ops.dropout")._dropout
    acts = [
        lambda: dropout(x, 0.5, RNG, 1.5),
        lambda: dropout(x, "half", RNG, 0),
        lambda: dropout(x, 0, RNG, True),
        lambda: dropout(x, 0.5, RNG),
        lambda: dropout(x.to_sparse(), 0.5, RNG, 0),
        lambda: dropout(negated, 0.5, RNG, 0),
    ]
    for act in acts:
        short, long = by_both_ways(monkeypatch, lambda act=act: message(act))
        assert short == long


def call(x: Tensor) -> Tensor:
    return ops.dropout(x, 0.5, RNG)


def leaf() -> Tensor:
    return torch.ones(4, 8, requires_grad=True)


def took_the_short_way(y: Tensor) -> bool:
    assert y.grad_fn is not None
    return y.grad_fn.name().startswith("fastseq_")


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.append(str(func))
        return func(*args, **(kwargs or {}))


class Unchanged(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


def test_where_nothing_looks_the_way_is_short() -> None:
    assert took_the_short_way(call(leaf()))
    assert took_the_short_way(call(torch.nn.Parameter(torch.ones(4, 8))))
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert took_the_short_way(call(leaf()))


def test_modes_and_tensors_of_other_kinds_see_the_op() -> None:
    with Seen() as seen:
        y = call(leaf())
        y.sum().backward()
    assert not took_the_short_way(y) and seen.ops.count("fastseq.dropout.default") == 2
    with Unchanged():
        assert not took_the_short_way(call(leaf()))
    with torch.autograd.profiler.profile() as profile:
        call(leaf())
    assert any(event.key == "fastseq::dropout" for event in profile.key_averages())
    assert not took_the_short_way(call(leaf().as_subclass(Subclass)))
    assert ops.dropout(torch.ones(4, 8, device="meta"), 0.5, RNG.to("meta")).device.type == "meta"
    with FakeTensorMode() as mode:
        x = torch.ones(4, 8)
    with ops.record_served() as served:
        assert type(ops.dropout(x, 0.5, mode.from_tensor(RNG))) is type(x)
    assert not served


def test_transforms_and_tracers_see_the_op() -> None:
    x = torch.ones(4, 8)
    assert "fastseq.dropout" in make_fx(call)(x).code
    assert "fastseq::dropout" in str(torch.jit.trace(call, x).graph)
    with pytest.raises(RuntimeError, match="functorch transforms"):  # as torch.library has it
        torch.func.grad(lambda x: call(x).sum())(x)
    exported = torch.export.export(_Module(), (x,))
    assert "fastseq.dropout" in exported.graph_module.code
    assert torch.equal(torch.vmap(call)(torch.stack((x, x)))[1], call(x))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        assert torch.autograd.forward_ad.unpack_dual(call(dual)).tangent is None


class _Module(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return call(x)


def test_checkpoints_and_second_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpointed block gives the same gradients; a second derivative is refused in the same words."""

    def act() -> list[Any]:
        x = leaf()
        (gradient,) = torch.autograd.grad(checkpoint(call, x, use_reentrant=False).sum(), x)
        bias = torch.zeros(8, requires_grad=True)
        y = ops.bias_gelu_dropout(x, bias)
        with pytest.raises(RuntimeError, match="leave out create_graph=True") as refused:
            torch.autograd.grad(y.sum(), x, create_graph=True)
        return [described(gradient), str(refused.value)]

    short, long = by_both_ways(monkeypatch, act)
    assert short == long


def test_what_is_saved_is_guarded() -> None:
    """Writing to an argument between the passes is an error, as of any op."""
    x = leaf()
    bias = torch.zeros(8)
    y = ops.bias_gelu_dropout(x, bias)
    bias.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


class _Unused(torch.autograd.Function):
    """A node that gives no gradient, rather than zeros, to what it was called with first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return x.sum() + y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


@pytest.mark.parametrize(("name", "change"), [pytest.param(*c, id=f"{c[0]}-{'-'.join(c[1])}") for c in ALL])
def test_no_gradient_where_none_comes_back(name: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> list[bool]:
        arguments = CALLS[name]() | change
        leaves = [arguments[key].requires_grad_() for key in differentiable(name, arguments)]
        outputs, other = results(name, arguments), torch.ones((), requires_grad=True)
        if not outputs[0].requires_grad:
            return []
        _Unused.apply(outputs[0], other).backward()
        return [x.grad is None or not x.grad.any() for x in leaves]

    for way in by_both_ways(monkeypatch, act):
        assert all(way)
