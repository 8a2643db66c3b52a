"""Which implementation serves which op, and the registration of every op with torch.library.

An op named ``x`` in file ``f`` has its public function in ``fastseq/ops/f.py``, and its implementations are the
functions of the same name and signature in

    reference   fastseq/ops/reference/f.py   plain PyTorch
    cpu         fastseq/ops/cpu/f.py         C++ and BLAS
    triton      fastseq/kernels/f.py         Triton (the folder kernels/)

so the table of implementations is the folder listing, and a new kernel is served as soon as its function exists.
"""

from __future__ import annotations

import importlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from . import _checks
from ._lane import short_way, without_autocast

Backend = Literal["reference", "cpu", "triton"]
BACKENDS: tuple[Backend, ...] = ("reference", "cpu", "triton")
_FOLDERS = {"reference": "fastseq.ops.reference", "cpu": "fastseq.ops.cpu", "triton": "fastseq.kernels"}
_PREFERRED: dict[str, Backend] = {"cpu": "cpu", "cuda": "triton"}
_REMEDIES = {
    "cpu": "reinstall fastseq-rec where a C++ compiler is found (pip install . needs g++ or clang++)",
    "triton": "install Triton (pip install 'fastseq-rec[triton]')",
}

LIBRARY = torch.library.Library("fastseq", "DEF")


class BackendError(RuntimeError):
    """No implementation may serve an op here: FASTSEQ_STRICT=1 forbids the fallback."""


@dataclass(frozen=True)
class Served:
    """Which implementation serves an op on a device, and why."""

    op: str
    device: str
    backend: Backend
    reason: str
    function: Callable[..., Any]


_files: dict[str, str] = {}  # op -> file
_data_checks: dict[str, Callable[..., None]] = {}  # op -> check of what only its arguments' data shows
_under_autocast: dict[str, Callable[[str, tuple[Any, ...]], tuple[Any, ...]]] = {}
_WIDENED = {"cpu"}  # where activations stay in float32 under autocast
_served: dict[tuple[str, str], Served] = {}
_warned: set[tuple[str, str]] = set()
_recorders: list[list[tuple[str, Backend]]] = []
_lock = threading.RLock()


def _from_environment() -> Backend | None:
    name = os.environ.get("FASTSEQ_BACKEND", "")
    return _checked(name, "FASTSEQ_BACKEND") if name else None


def _checked(name: str, origin: str) -> Backend:
    for backend in BACKENDS:
        if name == backend:
            return backend
    raise ConfigError(f"{origin} is {name!r}, expected one of {', '.join(BACKENDS)}")


_forced: Backend | None = _from_environment()


def strict() -> bool:
    """Whether FASTSEQ_STRICT turns every fallback into an error."""
    return os.environ.get("FASTSEQ_STRICT", "") not in ("", "0")


class set_backend:  # a class in lower case: used as a function and as a context, like torch.set_grad_enabled
    """Chooses the implementation of every op: "reference", "cpu", "triton", or None for the device's own.

    Takes effect at once; as a context manager it is undone at the end of the block. Process-wide.

    Raises:
        ValueError: if the name is not one of those.
    """

    def __init__(self, backend: str | None) -> None:
        global _forced
        self._previous = _forced
        checked = None if backend is None else _checked(backend, "backend")
        with _lock:
            _forced = checked
            _served.clear()

    def __enter__(self) -> set_backend:
        return self

    def __exit__(self, *error: object) -> None:
        global _forced
        with _lock:
            _forced = self._previous
            _served.clear()


@contextmanager
def record_served() -> Iterator[list[tuple[str, Backend]]]:
    """Yields a list that receives (op, backend) for every op call inside the block. For tests and benchmarks."""
    calls: list[tuple[str, Backend]] = []
    _recorders.append(calls)
    try:
        yield calls
    finally:
        _recorders[:] = [other for other in _recorders if other is not calls]  # equal lists are not the same


def _find(op: str, backend: Backend) -> Callable[..., Any] | str:
    """The implementation, or why there is none."""
    try:
        module = importlib.import_module(f"{_FOLDERS[backend]}.{_files[op]}")
    except ImportError as error:
        return f"{type(error).__name__}: {error}"
    function = getattr(module, op, None)
    return function if function is not None else f"{module.__name__} has no {op}"


def _fall_back(op: str, device: str, reason: str, remedy: str, cause: tuple[str, str]) -> None:
    """Warns, once for each cause, that plain PyTorch will serve ``op``; raises BackendError under FASTSEQ_STRICT=1."""
    if strict():
        raise BackendError(f"{op} on {device}: {reason}. FASTSEQ_STRICT=1 forbids the fallback; {remedy}")
    if cause not in _warned:
        _warned.add(cause)
        message = f"fastseq: {op} falls back to plain PyTorch: {reason}; {remedy}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def plain(op: str, device: str, reason: str, remedy: str) -> Callable[..., Any]:
    """The reference of ``op``, for a call that its fast path cannot serve; one warning for each reason.

    Raises:
        BackendError: under FASTSEQ_STRICT=1.
    """
    with _lock:
        _fall_back(op, device, reason, remedy, cause=("triton", reason))
    function: Any = _find(op, "reference")
    return function


def served(op: str, device: str) -> Served:
    """Which implementation serves ``op`` on tensors of device type ``device``.

    Raises:
        BackendError: under FASTSEQ_STRICT=1, if that would be a fallback.
    """
    key = (op, device)
    cached = _served.get(key)
    if cached is not None:
        return cached
    with _lock:
        preferred = _forced or _PREFERRED.get(device, "reference")
        function = _find(op, preferred)
        reason = "set_backend or FASTSEQ_BACKEND" if _forced else f"the fast path of device {device!r}"
        backend: Backend = preferred
        if isinstance(function, str):
            reason = f"{preferred} is not available ({function})"
            _fall_back(op, device, reason, _REMEDIES.get(preferred, ""), cause=(preferred, function))
            backend, function = "reference", _find(op, "reference")
            if isinstance(function, str):
                raise BackendError(f"{op}: the reference is missing too ({function})")
        result = Served(op, device, backend, reason, function)
        _served[key] = result
        return result


def _wants_gradient(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.requires_grad


# What Triton raises where it cannot compile or load a kernel: its classes, and the words of a plain RuntimeError.
_TRITON_ERRORS = {"OutOfResources", "PTXASError", "CompilationError"}
_TRITON_WORDS = ("kernel image", "PTX", "PassManager", "active drivers", "C compiler")


def _not_built(error: Exception) -> bool:
    """Whether Triton has no kernel for this GPU, or none that fits into it: nothing has run then."""
    if any(kind.__name__ in _TRITON_ERRORS for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _TRITON_WORDS)


def _without_triton(op: str, device: str, arguments: tuple[Any, ...], error: Exception) -> Callable[..., Any]:
    """The reference of ``op`` in place of a kernel that Triton could not build, with one warning for each reason.

    Raises:
        BackendError: naming op, GPU and remedy, under FASTSEQ_STRICT=1, and for an op in place, which may have begun.
    """
    where = next(x.device for x in arguments if isinstance(x, Tensor))
    gpu = str(where)
    if where.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(where)))
        gpu = f"{torch.cuda.get_device_name(where)} (compute capability {capability})"
    said = str(error).strip().partition("\n")[0]
    reason = f"Triton has no kernel that runs on {gpu} ({type(error).__name__}: {said})"
    remedy = "FASTSEQ_BACKEND=reference asks for plain PyTorch, device cpu for C++"
    if getattr(torch.ops.fastseq, op).default._schema.is_mutable:
        raise BackendError(f"{op}: {reason}; {remedy}") from error
    function = plain(op, device, reason, remedy)
    if "OutOfResources" not in type(error).__name__:  # that one depends on the call; all others would be met again
        with _lock:
            _served[op, device] = Served(op, device, "reference", reason, function)
    return function


def _call(op: str, device: str, arguments: tuple[Any, ...]) -> Any:
    if device == "cuda":
        index = next(x.device.index for x in arguments if isinstance(x, Tensor))
        if index != torch.cuda.current_device():
            with torch.cuda.device(index):  # Triton launches on the current GPU, whichever holds the tensors
                return _serve(op, device, arguments)
    return _serve(op, device, arguments)


def _serve(op: str, device: str, arguments: tuple[Any, ...]) -> Any:
    if torch.is_grad_enabled() and op.endswith("_backward") and any(map(_wants_gradient, arguments)):
        # Without a formula torch would warn and go on with a second derivative that lacks this op's part.
        raise RuntimeError(f"fastseq::{op} has no derivative: leave out create_graph=True")
    serving = served(op, device)
    for calls in _recorders:
        calls.append((op, serving.backend))
    check = _data_checks.get(op)
    if serving.backend != "cpu":
        if check is not None and _checks.wanted(device):
            check(*arguments)
        try:
            return serving.function(*arguments)
        except Exception as error:
            if serving.backend != "triton" or not _not_built(error):
                raise
            return _without_triton(op, device, arguments, error)(*arguments)
    try:
        return serving.function(*arguments)
    except (ValueError, IndexError, RuntimeError) as error:
        if check is not None and " has shape " not in str(error):  # a check expects the shapes of the public op
            _checks.explained(check, arguments)
        raise


def _dispatched(op: str, device: str, *arguments: Any) -> Any:
    """What torch.library calls."""
    if device != "cpu":
        _checks.same_device(op, arguments)
    return _call(op, device, arguments)


def _autocast(op: str, device: str, *arguments: Any) -> Any:
    with without_autocast(device):
        return getattr(torch.ops.fastseq, op).default(*_under_autocast[op](device, arguments))


def _cast(positions: tuple[int, ...], device: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What autocast makes of the arguments of an op.

    On the CPU all floating tensors are cast to the widest type among them; autocast's own type is for the products of
    ops that take ``bfloat16`` as an argument. On a GPU the tensors at ``positions``, operands of products, are cast to
    autocast's type (float64 is not, as in PyTorch), and all others pass as they are.
    """
    if device in _WIDENED:
        kinds = [a.dtype for a in arguments if isinstance(a, Tensor) and a.is_floating_point()]
        widest = reduce(torch.promote_types, kinds) if kinds else None
        return tuple(a.to(widest) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)
    cast, narrow = list(arguments), torch.get_autocast_dtype(device)
    for i in positions:
        if isinstance(cast[i], Tensor) and cast[i].dtype != torch.float64:
            cast[i] = cast[i].to(narrow)
    return tuple(cast)


def bfloat16_products(device: str) -> bool:
    """Whether autocast asks for matrix products in bfloat16. Ops that have one take it as an argument."""
    on = device in _PREFERRED and torch.is_autocast_enabled(device)
    return on and torch.get_autocast_dtype(device) == torch.bfloat16


def bfloat16_activations(device: str) -> bool:
    """Whether autocast wants activations in bfloat16 too: on a GPU, where memory is what most ops wait for."""
    return device not in _WIDENED and bfloat16_products(device)


def register(
    op: str,
    *,
    fake: Callable[..., Any],
    differentiable: tuple[int, ...] = (),
    with_output: bool = False,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    check: Callable[..., None] | None = None,
    autocast: tuple[int, ...] = (),
    mutates: tuple[str, ...] = (),
    file: str = "",
) -> Any:
    """Defines ``fastseq::<op>`` with the signature of its reference and returns the callable overload.

    Its implementations are called with positional arguments. The schema is inferred from the annotations of the
    reference: ``Tensor | None``, ``int``, ``float``, ``bool``, ``str``; one Tensor or a tuple of them.

    Args:
        op: the name, of the reference's function too.
        fake: shapes and dtypes of the outputs, on meta tensors.
        differentiable: positions of the arguments that have gradients, of the first output alone. Defines
            ``fastseq::<op>_backward`` too, whose arguments are the gradient of that output, those of the op and its
            other outputs, and whose results are the gradients in this order, empty for an argument that is None.
        with_output: whether ``fastseq::<op>_backward`` gets that first output too, before the others.
        setup_context, backward: for any other op, as of torch.library.register_autograd; both or neither.
        check: raises for what only the data of the arguments shows, and is called with them where that may be looked at
            (_checks.py). None for an op that takes no data for addresses, or what its forward op has checked.
        autocast: positions of the arguments that autocast on a GPU casts to its type, the operands of matrix products
            (_cast). The others pass as they are: implementations take activations and parameters of different types.
        mutates: names of the arguments that the op writes to.
        file: where its implementations are; empty: in files named as the one that ``fake`` is in.
    """
    _files[op] = file = file or fake.__module__.rpartition(".")[2]
    _under_autocast[op] = partial(_cast, autocast)
    reference = getattr(importlib.import_module(f"{_FOLDERS['reference']}.{file}"), op)
    schema = torch.library.infer_schema(reference, mutates_args=mutates)
    if check is not None:
        _data_checks[op] = check
    LIBRARY.define(op + schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("cpu", "cuda"):
        LIBRARY.impl(op, partial(_dispatched, op, device), device.upper())
        LIBRARY.impl(op, partial(_autocast, op, device), f"Autocast{device.upper()}")

    def checked(*arguments: Any) -> Any:
        _checks.same_device(op, arguments)  # with one tensor on meta, the whole call would come here
        return fake(*arguments)

    torch.library.register_fake(f"fastseq::{op}", checked, lib=LIBRARY)
    if differentiable:
        setup_context, backward = _gradients_of(op, file, differentiable, with_output)
    if backward is not None:
        backward = _where_wanted(op, backward)
        torch.library.register_autograd(f"fastseq::{op}", backward, setup_context=setup_context, lib=LIBRARY)
    overload = getattr(torch.ops.fastseq, op).default
    return overload if mutates else short_way(op, overload, _call, _under_autocast[op], setup_context, backward)


def _where_wanted(op: str, backward: Callable[..., Any]) -> Callable[..., Any]:
    """``backward``; no gradients where a later node has given none, which is not a tensor of zeros then."""
    nothing = (None,) * len(getattr(torch.ops.fastseq, op).default._schema.arguments)

    def wanted(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> Any:
        return nothing if grad is None else backward(ctx, grad, *others)

    return wanted


def _gradients_of(
    op: str, file: str, differentiable: tuple[int, ...], with_output: bool
) -> tuple[Callable[..., None], Callable[..., Any]]:
    """Defines ``fastseq::<op>_backward``; returns the context and the backward that call it."""

    def fake(grad: Tensor, *arguments: Any) -> Any:
        like = arguments[differentiable[0]]
        return tuple(
            like.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
            for x in (arguments[i] for i in differentiable)
        )

    gradient = register(f"{op}_backward", fake=fake, file=file)
    kinds = [str(argument.type) for argument in getattr(torch.ops.fastseq, op).default._schema.arguments]
    tensors = [i for i, kind in enumerate(kinds) if "Tensor" in kind]
    settings = [i for i, kind in enumerate(kinds) if "Tensor" not in kind]
    count = len(tensors)
    in_order = itemgetter(*sorted(range(len(kinds)), key=[*tensors, *settings].__getitem__))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = (output,) if isinstance(output, Tensor) else output
        ctx.settings = [inputs[i] for i in settings]
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*[inputs[i] for i in tensors], *outputs[0 if with_output else 1 :])

    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        arguments = in_order((*saved[:count], *ctx.settings))
        result: list[Tensor | None] = [None] * len(arguments)
        for i, value in zip(differentiable, gradient(grad, *arguments, *saved[count:]), strict=True):
            result[i] = None if arguments[i] is None else value
        return tuple(result)

    return setup_context, backward


def explain() -> str:
    """One line per op: what serves it here, on the CPU and on the GPU if there is one, and why.

    Returns the text and prints nothing, so that it can be logged; ``print(fastseq.explain())`` shows it.
    """
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    lines = []
    for op in sorted(_files):
        for device in devices:
            try:
                serving = served(op, device)
                lines.append(f"{op:32} {device:5} {serving.backend:10} {serving.reason}")
            except BackendError as error:
                lines.append(f"{op:32} {device:5} {'none':10} {error}")
    return "\n".join(lines)
