"""The short way to an op: past torch.library's dispatcher, which costs several times what a small op does.

torch.library is there for what looks at an op or gives it another meaning: torch.compile, torch.export, tracing,
FakeTensors and other subclasses, dispatch modes, torch.func, forward-mode derivatives, the profiler. Where there is
none of them, an op is its implementation, and with gradients a torch.autograd.Function of the same two formulas that
torch.library has. Whatever this file does not know takes the long way, which is always right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

Call = Callable[[str, str, tuple[Any, ...]], Any]

_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_transforms, _tracing = torch._C._are_functorch_transforms_active, torch._C._get_tracing_state
_profiled, _any_requires_grad = torch.autograd._profiler_enabled, torch._C._any_requires_grad
_TYPES: dict[str, set[type]] = {kind.__name__: {kind} for kind in (int, float, bool, str)}
_TYPES["Tensor"] = {Tensor, Parameter}
_AUTOCAST = {
    device: torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))
    for device in ("cpu", "cuda")
}


def _watched() -> bool:
    """Whether something must see the op, or gives it another meaning. Dynamo is asked for apart."""
    return bool(
        _dispatch_modes()
        or _function_modes()
        or _transforms()
        or forward_ad._current_level >= 0
        or _profiled()
        or _tracing() is not None
    )


def without_autocast(device: str) -> Any:
    """A context in which autocast does nothing on ``device``: what an op computes has the types of its operands."""
    return torch._C._ExcludeDispatchKeyGuard(_AUTOCAST[device])


def _function(
    op: str, run: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """The op with gradients, served by ``run``."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = run(*arguments)
        setup_context(ctx, arguments, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(f"fastseq_{op}", (torch.autograd.Function,), members)
    # Without Function's own apply, which asks once more for what _watched has answered.
    return cast(Callable[..., Any], super(torch.autograd.Function, function).apply)


def _serving(
    op: str, device: str, call: Call, setup_context: Callable[..., None] | None, backward: Callable[..., Any] | None
) -> Callable[..., Any]:
    """The op on a device, with its gradients where they are wanted."""
    if setup_context is None or backward is None:
        return lambda *arguments: call(op, device, arguments)

    def run(*arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return call(op, device, arguments)

    apply = _function(op, run, setup_context, backward)

    def serve(*arguments: Any) -> Any:
        wanted = torch.is_grad_enabled() and _any_requires_grad(*arguments)
        return apply(*arguments) if wanted else run(*arguments)

    return serve


def short_way(
    op: str,
    overload: Any,
    call: Call,
    under_autocast: Callable[[str, tuple[Any, ...]], tuple[Any, ...]],
    setup_context: Callable[..., None] | None,
    backward: Callable[..., Any] | None,
) -> Callable[..., Any]:
    """What calls ``fastseq::<op>`` with positional arguments: as ``overload`` does, by the shortest way.

    Args:
        overload: the op of torch.library.
        call: runs its implementation, for (op, device, arguments).
        under_autocast: what becomes of the arguments under autocast, for (device, arguments).
        setup_context, backward: as of torch.library.register_autograd; None for an op without gradients.
    """
    expected = [_types(str(argument.type)) for argument in overload._schema.arguments]
    serving = {device: _serving(op, device, call, setup_context, backward) for device in _AUTOCAST}
    # What autograd gives to a backward op has been looked at on its way through the forward op.
    looked_at = 1 if op.endswith("_backward") else len(expected)
    # By the types of all arguments: which ones are tensors. None of them, where torch.library converts or refuses one.
    known: dict[tuple[type, ...], tuple[int, ...]] = {}

    def tensors_of(kinds: tuple[type, ...]) -> tuple[int, ...]:
        fits = len(kinds) == len(expected) and all(k in e for k, e in zip(kinds, expected, strict=True))
        places = [i for i, kind in enumerate(kinds) if issubclass(kind, Tensor)] if fits else []
        return known.setdefault(kinds, tuple(places[:looked_at]))

    def short(*arguments: Any) -> Any:
        if torch.compiler.is_dynamo_compiling() or _watched():
            return overload(*arguments)
        kinds = tuple(map(type, arguments))
        tensors = known.get(kinds)
        if tensors is None:
            tensors = tensors_of(kinds)
        if not tensors:
            return overload(*arguments)
        first = arguments[tensors[0]]
        where = first.device
        for i in tensors:
            x = arguments[i]
            if x.device != where or x.is_neg():
                return overload(*arguments)
        device = "cpu" if first.is_cpu else "cuda" if first.is_cuda else ""
        if not device or first.layout is not torch.strided:
            return overload(*arguments)
        if torch.is_autocast_enabled(device):
            with without_autocast(device):
                return serving[device](*under_autocast(device, arguments))
        return serving[device](*arguments)

    return short


def _types(kind: str) -> set[type]:
    """The types of an argument that torch.library takes as they are, by its type in the schema."""
    types: set[type] = {type(None)} if kind.startswith("Optional[") else set()
    return types | _TYPES[kind.removeprefix("Optional[").removesuffix("]")]
