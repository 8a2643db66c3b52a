"""A CUDA device that is not there: fake CUDA tensors, the real Triton wrappers, launches recorded instead of run.

What runs on the host runs for real: the loader, numpy, Python's control flow. A tensor on "cuda" is a FakeTensor: it
has a type, a shape, strides and a device, and no numbers. An op of fastseq runs its Triton wrapper, and a launch goes
through Triton's own binder up to the compiler. So placement, types, shapes, launches, copies and waits are those of a
GPU. Numbers, races and speed are not.

``device()`` patches PyTorch for the rest of the process, so a process that imports this module does nothing else.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

H200 = SimpleNamespace(
    name="phantom of an NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    warp_size=32,
    total_memory=150 << 30,
    L2_cache_size=60 << 20,
    shared_memory_per_block_optin=232448,
)
# ATen operations that launch nothing, besides views.
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "detach_", "lift_fresh"}
FREE |= {"is_same_size", "sym_size", "resize_", "set_", "_unsafe_view", "_reshape_alias", "is_pinned", "record_stream"}
# Operations that write in place and that fake tensors do not know in all their forms.
WITHOUT_META = {"_fused_adam_", "_fused_adamw_"}
# Launches of one call, at least, where it is more than one.
LAUNCHES = {"sort": 4, "argsort": 4, "_fused_adam_": 2, "_fused_adamw_": 2, "_foreach_norm": 2, "unique": 6}


@dataclass
class Record:
    """What one flow did on the device."""

    launches: list[dict[str, Any]] = field(default_factory=list)  # by Triton, in order
    aten: Counter[str] = field(default_factory=Counter)  # kernels of PyTorch's operations, by name
    copies: list[str] = field(default_factory=list)  # from the host: "async" or "blocking", shape, type and where
    syncs: list[str] = field(default_factory=list)  # waits for the device: what and where
    errors: list[str] = field(default_factory=list)
    operands: dict[str, set[str]] = field(default_factory=dict)  # op -> the floating types that reached its kernels
    products: set[str] = field(default_factory=set)  # how PyTorch's own products multiply float32: "ieee" or "tf32"
    casts: Counter[str] = field(default_factory=Counter)  # kernels that change a type, and where
    on_host: Counter[str] = field(default_factory=Counter)  # PyTorch's operations on the host that make a tensor

    @property
    def operations(self) -> int:
        """Launches, and kernels of PyTorch, at least."""
        return len(self.launches) + sum(self.aten.values())


class _Modes:
    """The state that patches and modes share: there is one device stack in a process."""

    def __init__(self) -> None:
        self.current = 0  # torch.cuda.current_device()
        self.record = Record()
        self.pinned: set[int] = set()
        self.kept: dict[int, str] = {}  # names of memory that outlives a step, by its storage


STATE = _Modes()


def where() -> str:
    """The innermost line of fastseq or its tests on the stack."""
    for frame in reversed(traceback.extract_stack()):
        path = frame.filename
        if (
            "/torch/" not in path
            and "/triton/" not in path
            and not path.endswith(("phantom/device.py", "contextlib.py"))
        ):
            return f"{'/'.join(path.split('/')[-2:])}:{frame.lineno} {frame.name}"
    return "autograd"


def _described(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"


class _Fake(FakeTensorMode):
    avoid_device_init = True  # there is none, whatever torch.cuda.is_available() says


class _Dispatch(TorchDispatchMode):
    """Takes every ATen operation and op of fastseq that meets a fake tensor or a CUDA device."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = _Fake(allow_non_fake_inputs=True)

    def __enter__(self) -> Any:
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        fakes = [x for x in tensors if isinstance(x, FakeTensor)]
        on_cuda = any(isinstance(x, torch.device) and x.type == "cuda" for x in leaves)
        name = func._schema.name.split("::")[1]
        if not fakes and not on_cuda:
            return self._on_the_host(func, name, args, kwargs)
        if func.namespace == "fastseq":
            return self._op(func, name, args)
        if func.namespace == "prim":
            return func(*args, **kwargs)
        key = "CompositeImplicitAutograd"  # inference mode hands composite operations to modes whole
        if func._can_decompose() and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        record = STATE.record
        if name == "_local_scalar_dense":
            record.syncs.append(f"item at {where()}")
            return self._value(args[0])
        target = kwargs.get("device")
        if name == "_to_copy" and target is not None and target.type == "cpu" and fakes:
            record.syncs.append(f"copy to the host, {_described(args[0])}, at {where()}")
            record.aten["copy to the host"] += 1
            with _disable_current_modes():
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        host = [x for x in tensors if not isinstance(x, FakeTensor)]
        if host and (name == "_to_copy" or (name == "copy_" and len(tensors) == 2)):
            self._from_the_host(host[0], bool(kwargs.get("non_blocking", False) or (len(args) > 2 and args[2])))
        return self._aten(func, name, args, kwargs)

    def _on_the_host(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name == "is_pinned":
            return args[0].untyped_storage()._cdata in STATE.pinned
        if name in ("_pin_memory", "pin_memory") or kwargs.get("pin_memory"):
            out = args[0].clone() if name.endswith("pin_memory") else func(*args, **(kwargs | {"pin_memory": False}))
            STATE.pinned.add(out.untyped_storage()._cdata)
            return out
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and not _is_view(func):
            STATE.record.on_host[f"{name} at {where()}"] += 1
        return out

    def _from_the_host(self, source: Tensor, non_blocking: bool) -> None:
        pinned = source.untyped_storage()._cdata in STATE.pinned
        kind = "async" if non_blocking and pinned else "blocking"
        STATE.record.copies.append(f"{kind}, {source.numel() * source.element_size()} bytes at {where()}")

    def _aten(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        from fastseq.kernels.products import float32_precision

        record = STATE.record
        if name in WITHOUT_META:
            record.aten[name] += LAUNCHES.get(name, 1)
            return None
        try:
            with self.fake:
                out = func(*args, **kwargs)
        except DynamicOutputShapeException:
            record.syncs.append(f"the shape of {name} at {where()}")
            out = self._of_some_shape(name, args, kwargs)
        except DataDependentOutputException:
            record.syncs.append(f"the value of {name} at {where()}")
            return True if name == "equal" else 1
        except RuntimeError as error:
            if "device" in str(error).lower():
                record.errors.append(f"{name}: {str(error).splitlines()[0]} at {where()}")
            raise
        if name in ("all", "any") and isinstance(out, Tensor):
            out._value = name == "all"  # nothing is wrong
        if name in ("logical_not", "bitwise_not") and hasattr(args[0], "_value"):
            out._value = not args[0]._value
        if name in ("mm", "addmm", "_addmm_activation"):
            record.products.add(float32_precision())
        if name not in FREE and not _is_view(func):
            record.aten[name] += LAUNCHES.get(name, 1)
            kind = kwargs.get("dtype")
            if name == "_to_copy" and kind is not None and args[0].dtype != kind:
                record.casts[f"{args[0].dtype} to {kind} at {where()}".replace("torch.", "")] += 1
        return out

    def _value(self, x: Tensor) -> Any:
        if hasattr(x, "_value"):
            return x._value
        return False if x.dtype == torch.bool else 1.0 if x.is_floating_point() else 1

    def _of_some_shape(self, name: str, args: Any, kwargs: Any) -> Tensor:
        with self.fake:
            if name == "index":
                x, index = args
                masks = [i for i in index if i is not None and i.dtype in (torch.bool, torch.uint8)]
                return torch.empty((masks[0].numel(), *x.shape[masks[0].dim() :]), dtype=x.dtype, device=x.device)
            if name == "nonzero":
                return torch.empty((0, args[0].dim()), dtype=torch.int64, device=args[0].device)
            raise NotImplementedError(name)

    def _op(self, func: Any, name: str, args: Any) -> Any:
        """An op of fastseq: through ``_call``, as on a GPU, beside its registered fake."""
        from fastseq.ops import _dispatch

        record = STATE.record
        kinds = {str(x.dtype).removeprefix("torch.") for x in args if isinstance(x, Tensor) and x.is_floating_point()}
        record.operands.setdefault(name, set()).update(kinds)
        with _dispatch.record_served() as served, self:
            out = _dispatch._call(name, "cuda", args)
        if served[:1] != [(name, "triton")]:
            record.errors.append(f"{name}: served by {served[:1]}")
        with self.fake:
            expected = func(*args)
        layouts = [
            [(tuple(x.shape), x.dtype, str(x.device), x.stride()) for x in tree_leaves(y) if isinstance(x, Tensor)]
            for y in (out, expected)  # None from an op in place
        ]
        if layouts[0] != layouts[1]:
            record.errors.append(f"{name}: the wrapper gives {layouts[0]}, the fake {layouts[1]}")
        return out


def _is_view(func: Any) -> bool:
    returned = func._schema.returns
    return bool(returned) and any(r.alias_info is not None and not r.alias_info.is_write for r in returned)


class _Indexing(TorchFunctionMode):
    """x[...] and x[...] = y of fake tensors as ATen operations: Python's own path wants a CUDA build."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (Tensor.__getitem__, Tensor.__setitem__) or not isinstance(args[0], FakeTensor):
            return func(*args, **kwargs)
        x, index = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
        given = sum(i is not None and i is not Ellipsis for i in index)
        full: list[Any] = []
        for i in index:
            full += [slice(None)] * (x.dim() - given) if i is Ellipsis else [i]
        dim, places = 0, {}
        for i in full:
            if i is None:
                x, dim = x.unsqueeze(dim), dim + 1
            elif isinstance(i, slice):
                if i != slice(None):
                    x = torch.ops.aten.slice(x, dim, *i.indices(x.shape[dim]))
                dim += 1
            elif isinstance(i, int):
                x = x.select(dim, i)
            else:
                places[dim], dim = i if isinstance(i, Tensor) else torch.tensor(i), dim + 1
        at = [places.get(k) for k in range(max(places, default=-1) + 1)]
        if func is Tensor.__getitem__:
            return torch.ops.aten.index(x, at) if at else x
        value = args[2] if isinstance(args[2], Tensor) else torch.full((), args[2], dtype=x.dtype, device=x.device)
        torch.ops.aten.index_put_(x, at, value) if at else x.copy_(value)
        return None


def _without_memory(x: Any) -> Any:
    """A fake tensor as a meta tensor, whose address Triton's binder may ask for: its offset in its storage."""
    if not isinstance(x, FakeTensor):
        return x
    return torch.empty(0, dtype=x.dtype, device="meta").as_strided(x.shape, x.stride(), x.storage_offset())


def _held(x: Tensor) -> str:
    """The name of the memory behind a tensor, "temporary" if it has none, and how it lies there."""
    name = STATE.kept.get(x.untyped_storage()._cdata, "temporary")
    return f"{name} {_described(x)} {x.stride()} from {x.storage_offset()}"


def _launch(run: Callable[..., Any]) -> Callable[..., Any]:
    """JITFunction.run that checks and records a launch, and stops before the compiler."""

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        record = STATE.record
        names = [parameter.name for parameter in self.params]
        bound = dict(zip(names, args, strict=False)) | {k: v for k, v in options.items() if k in names}
        kernel = f"{self.__module__.removeprefix('fastseq.kernels.')}.{self.__name__}"

        def wrong(what: str) -> None:
            record.errors.append(f"{kernel}: {what} at {where()}")

        if missing := [name for name in names if name not in bound]:
            wrong(f"no argument for {', '.join(missing)}")
        size = (*grid, 1, 1)[:3]
        if not (0 < size[0] < 2**31 and 0 < size[1] < 2**16 and 0 < size[2] < 2**16):
            wrong(f"grid {size}")
        for name, x in bound.items():
            if not isinstance(x, Tensor):
                continue
            if x.device.type != "cuda":
                wrong(f"{name} is on {x.device}")
            elif (x.device.index or 0) != STATE.current:
                wrong(f"{name} is on {x.device}, the current device is {STATE.current}")
            if not x.is_contiguous() and f"{name}_row" not in names:  # those are read by their strides
                wrong(f"{name} has strides {x.stride()}")
        # The arguments are not kept: a gradient that somebody holds is copied, not taken over.
        described = {name: _held(x) if isinstance(x, Tensor) else repr(x) for name, x in bound.items()}
        STATE.launch = launch = {"kernel": kernel, "grid": size, "arguments": described}  # type: ignore[attr-defined]
        with _disable_current_modes():
            given = [_without_memory(x) for x in args]
            run(self, *given, grid=grid, warmup=warmup, **{k: _without_memory(v) for k, v in options.items()})
        record.launches.append(launch)

    return launch


def _specialised(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
    """Triton's hook before it compiles: keeps what it would compile, and refuses."""
    source = {name: compile[name] for name in ("signature", "constants", "num_warps", "num_stages")}
    STATE.launch |= {"key": f"{fn.module}.{fn.name} {key}", "attributes": compile["configs"][0]} | source  # type: ignore[attr-defined]
    return True


class _Stream:
    """A stream, a context that makes it the current one, and an event: nothing waits."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device, self.cuda_stream = torch.device("cuda", STATE.current), 0

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def record_event(self, event: Any = None) -> _Stream:
        return self

    def wait(self, stream: Any = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        STATE.record.syncs.append(f"synchronize at {where()}")


def _exchange(index: int) -> int:
    before = STATE.current
    if index >= 0:
        STATE.current = index
    return before


def _patch() -> None:
    """PyTorch believes in two GPUs from here on."""
    import triton
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from benchmarks.ops.compile_report import _Driver

    made = torch.tensor

    def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        """What torch.tensor does inside, where no mode sees it."""
        x = made(data, **options)
        return x if device is None else x.to(device)

    torch.tensor = tensor  # type: ignore[assignment]
    Tensor.record_stream = lambda self, stream: None  # type: ignore[assignment,method-assign]
    cuda: Any = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 2
    cuda.get_device_properties = lambda device=None: H200
    cuda.get_device_name = lambda device=None: H200.name
    cuda.get_device_capability = lambda device=None: (H200.major, H200.minor)
    cuda.mem_get_info = lambda device=None: (H200.total_memory, H200.total_memory)
    cuda.memory_allocated = lambda device=None: 0
    cuda.current_device = lambda: STATE.current
    cuda.set_device = lambda device: _exchange(torch.device(device).index if not isinstance(device, int) else device)
    cuda._exchange_device = cuda._maybe_exchange_device = _exchange
    cuda.is_current_stream_capturing = lambda: False
    cuda.is_bf16_supported = lambda *_, **__: True
    cuda.synchronize = lambda device=None: STATE.record.syncs.append(f"synchronize at {where()}")
    cuda.Stream = cuda.Event = cuda.stream = _Stream
    cuda.current_stream = cuda.default_stream = _Stream
    cuda.amp.common.amp_definitely_not_available = lambda: False  # else autocast switches itself off
    torch.backends.cudnn.is_acceptable = lambda tensor: True  # type: ignore[assignment]
    driver.set_active(_Driver("sm_90"))
    triton.knobs.runtime.jit_cache_hook = _specialised
    JITFunction.run = _launch(JITFunction.run)  # type: ignore[method-assign]


@contextlib.contextmanager
def device() -> Iterator[Callable[[], Record]]:
    """A phantom device; the function it yields starts a new record and returns it.

    The library made of guard.cpp must have been loaded before PyTorch was.
    """
    _patch()
    torch.__future__.set_overwrite_module_params_on_conversion(True)

    def start() -> Record:
        STATE.record = Record()
        return STATE.record

    with torch.autograd.set_multithreading_enabled(False), _Dispatch(), _Indexing():
        yield start
