"""An implementation does what the op's reference does, before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..ops import record_served, set_backend
from .case import AUTOCAST, BFLOAT16, BOTH, FLOAT16, TF32, Case, Function

# Error allowed to an op, relative in the norm, for rounding and sums in another order. PyTorch's half-precision chains
# round between their parts and may lose more; that does not make them rivals of another function.
RIVALS = 4
TOLERANCE = {"float32": 1e-4, TF32: 5e-3, BFLOAT16: 2e-2, FLOAT16: 5e-3, AUTOCAST: 2e-2}
KINDS = {BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}


class Mismatch(AssertionError):
    """An implementation gives another result than the reference, or another one served."""


class Prepared:
    """One implementation of a case in one type.

    Args:
        case: what is measured.
        implementation: a name of ``case.functions``, or "compiled".
        dtype: "float32" (products exact), "tf32" (float32 with products in it), "bfloat16", "float16", or AUTOCAST:
            float32 leaves under autocast to bfloat16. Integer leaves stay as they are.
        backend: which implementation must serve the op; None: the device's own.

    Raises:
        ValueError: if the case has no such implementation.
    """

    def __init__(self, case: Case, implementation: str, dtype: str, backend: str | None = None) -> None:
        self.case, self.implementation, self.dtype = case, implementation, dtype
        self.kind = KINDS.get(dtype, torch.float32)
        # Copies: an op that works in place must leave the case to the next implementation as it was.
        self.leaves = [x.to(self.kind if x.is_floating_point() else x.dtype, copy=True) for x in case.leaves]
        self.upstream = None if case.upstream is None else case.upstream.to(self.kind)
        self.backend = backend
        self.functions: Mapping[str, Function] = {
            name: _under_autocast(f) if dtype == AUTOCAST else f for name, f in case.functions.items()
        }
        if implementation in ("compiled", "flex"):
            torch._dynamo.reset()  # each case is compiled for its own shapes
        if implementation == "compiled":
            self.function = torch.compile(self.functions["eager"])
        elif implementation in self.functions:
            self.function = self.functions[implementation]
        else:
            names = ", ".join([*case.functions, "compiled"])
            raise ValueError(f"implementation is {implementation!r}, expected one of {names} for {case.op}")

    @contextmanager
    def ready(self, direction: str) -> Iterator[Callable[[], Any]]:
        """Yields a function that runs one call: evaluation, or a step of training with the case's dropout."""
        backward = direction == BOTH and self.upstream is not None
        p = self.case.dropout_p if backward else 0.0
        for x in self.leaves:
            x.requires_grad_(backward and x.is_floating_point())
        function, leaves, upstream = self.function, self.leaves, self.upstream
        try:
            with torch.set_grad_enabled(backward), products(self.dtype):
                if backward:
                    yield lambda: step(function, p, leaves, upstream)
                else:
                    yield lambda: function(p, *leaves)
        finally:
            for x in self.leaves:
                x.requires_grad_(False)

    def check(self, expected: dict[float, list[Tensor]] | None = None) -> None:
        """The op must match its reference in float32, dropout mask included, and be served by its fast path; the others
        draw other masks and must match it without dropout. Gradients of all floating leaves are compared.

        Args:
            expected: the reference's results by dropout, filled here: for the other implementations of the same case
                and type.

        Raises:
            Mismatch: if it does not.
        """
        case, ours = self.case, self.implementation == "fastseq"
        if not ours and case.valid is not None:
            if not case.valid(self.function(0.0, *[x.clone() for x in self.leaves])):
                raise Mismatch(f"{self.implementation}: not a valid result of {case.op}")
            return
        p = case.dropout_p if ours else 0.0
        with products(self.dtype), record_served() as served:
            found = self._result(self.function, p)
        backend = self.backend or ("cpu" if found[0].device.type == "cpu" else "triton")
        if ours and {name for _, name in served} != {backend}:
            raise Mismatch(f"{case.op} was served by {sorted(set(served))}, expected {backend}")
        expected = {} if expected is None else expected
        if p not in expected:
            with products("float32"), set_backend("reference"):
                expected[p] = self._result(self.functions["fastseq"], p, torch.float32)
        limit = case.tolerances.get(self.dtype, TOLERANCE.get(self.dtype, 0.0)) * (1 if ours else RIVALS)
        if case.agree is not None:
            if not case.agree(found, expected[p], self.leaves):
                raise Mismatch(f"{self.implementation} disagrees with the reference of {case.op}")
            return
        assert_close(found, expected[p], limit)

    def _result(self, function: Function, p: float, kind: torch.dtype | None = None) -> list[Tensor]:
        copies = [x.detach().clone() for x in self.leaves]  # an op may work in place
        if kind is not None:
            copies = [x.to(kind) if x.is_floating_point() else x for x in copies]
        if self.upstream is None:
            with torch.no_grad():
                return step(function, p, copies, None)
        for x in copies:
            x.requires_grad_(x.is_floating_point())
        return step(function, p, copies, self.upstream)


def _under_autocast(function: Function) -> Function:
    def call(p: float, *leaves: Tensor) -> Any:
        with torch.autocast(leaves[0].device.type, torch.bfloat16):
            return function(p, *leaves)

    return call


@contextmanager
def products(dtype: str) -> Iterator[None]:
    """How float32 is multiplied inside: in tf32, or exactly. Nothing depends on it where there is no GPU."""
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if dtype == TF32 else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == TF32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = cudnn


def step(function: Function, p: float, leaves: Sequence[Tensor], upstream: Tensor | None) -> list[Tensor]:
    """The outputs of ``function(p, *leaves)`` and, with ``upstream``, the gradients of all floating leaves."""
    output = function(p, *leaves)
    if upstream is None:
        return list(output) if isinstance(output, tuple) else [output]
    wanted = [x for x in leaves if x.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, wanted, upstream.to(output.dtype))]


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Relative error in the norm, so that a wrong row shows and rounding does not; integers are equal.

    Raises:
        Mismatch: if a tensor is further off than ``tolerance``, or a NaN.
    """
    for place, (x, y) in enumerate(zip(found, expected, strict=True)):
        if x.shape != y.shape:
            raise Mismatch(f"result {place} is {list(x.shape)}, expected {list(y.shape)}")
        if not y.is_floating_point():
            if not torch.equal(x, y):
                raise Mismatch(f"result {place}: other integers than the reference")
            continue
        error, size = (x.float() - y).norm().item(), y.norm().item()
        if not error <= tolerance * size:
            raise Mismatch(f"result {place} is off by {error:.3g} of {size:.3g}, allowed {tolerance:g} of it")
