"""An implementation does what the op's reference does, before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastseq.ops import record_served, set_backend

from .case import AUTOCAST, BFLOAT16, BOTH, FLOAT16, TF32, Case, Function

# Error allowed to an op, relative in the norm, for rounding and sums in another order. PyTorch's half-precision chains
# round between their parts and may lose more; that does not make them rivals of another function.
RIVALS = 4
ROW = 10  # the worst of many rows is further off than all in the norm; on the CPU by less than the tolerance itself
TOLERANCE = {"float32": 1e-4, TF32: 5e-3, BFLOAT16: 2e-2, FLOAT16: 5e-3, AUTOCAST: 2e-2}
KINDS = {BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}


class Mismatch(AssertionError):
    """An implementation gives another result than the reference, or another one served."""


class ReferenceOutOfMemoryError(torch.OutOfMemoryError):
    """The reference does not fit, so nothing can be said of the op."""


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
        """Both calls that ``ready`` gives out, evaluation (p = 0, no gradients) and a step of training with the case's
        dropout: the op must match its reference in float32 in each, dropout mask included, and be served by its fast
        path. Gradients of all floating leaves are compared. The exception are the others: they draw other masks, so
        their step is held against the reference at p = 0 alone, which covers their evaluation too.

        Args:
            expected: the reference's results by dropout, filled here: for the other implementations of the same case
                and type.

        Raises:
            Mismatch: if it does not.
            ReferenceOutOfMemoryError: if the reference needs more memory than there is.
        """
        case, ours = self.case, self.implementation == "fastseq"
        if not ours and case.valid is not None:
            if not case.valid(self.function(0.0, *[x.clone() for x in self.leaves])):
                raise Mismatch(f"{self.implementation}: not a valid result of {case.op}")
            return
        expected = {} if expected is None else expected
        if ours and self.upstream is not None:
            found = self._found(0.0, gradients=False)
            # Of a step without dropout, which the others need as well, the output alone.
            self._compare(found, self._expected(0.0, expected)[: len(found)])
        p = case.dropout_p if ours else 0.0
        self._compare(self._found(p), self._expected(p, expected))

    def _found(self, p: float, gradients: bool = True) -> list[Tensor]:
        with products(self.dtype), record_served() as served:
            found = self._result(self.function, p, gradients=gradients)
        backend = self.backend or ("cpu" if found[0].device.type == "cpu" else "triton")
        identity = self.case.op == "dropout" and p == 0.0  # returns its input, served by nobody
        if self.implementation == "fastseq" and not identity and {name for _, name in served} != {backend}:
            raise Mismatch(f"{self.case.op} was served by {sorted(set(served))}, expected {backend}")
        return found

    def _expected(self, p: float, known: dict[float, list[Tensor]]) -> list[Tensor]:
        if p not in known:
            with products("float32"), set_backend("reference"):
                try:
                    known[p] = self._result(self.functions["fastseq"], p, torch.float32)
                except torch.OutOfMemoryError as error:
                    raise ReferenceOutOfMemoryError(str(error)) from error
        return known[p]

    def _compare(self, found: list[Tensor], expected: list[Tensor]) -> None:
        case, ours = self.case, self.implementation == "fastseq"
        limit = case.tolerances.get(self.dtype, TOLERANCE.get(self.dtype, 0.0)) * (1 if ours else RIVALS)
        if case.agree is not None:
            if not case.agree(found, expected, self.leaves):
                raise Mismatch(f"{self.implementation} disagrees with the reference of {case.op}")
            return
        assert_close(found, expected, limit, case.moved)

    def _result(
        self, function: Function, p: float, kind: torch.dtype | None = None, gradients: bool = True
    ) -> list[Tensor]:
        copies = [x.detach().clone() for x in self.leaves]  # an op may work in place
        if kind is not None:
            copies = [x.to(kind) if x.is_floating_point() else x for x in copies]
        if self.upstream is None or not gradients:
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


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, moved: float = 0.0) -> None:
    """Relative error in the norm of the whole and of every row (along the last dimension; of a vector, every element);
    integers are equal.

    A row may be off by ROW times the tolerance, and by half at most, of its own norm or of a typical row's, whichever
    is more: rows that cancel to little keep the rounding of their terms. So a row that was left out fails unless it
    is small beside that of others.

    Args:
        moved: share of the gradients' rows (of the results after the first) that may be further off.

    Raises:
        Mismatch: if a tensor or a row is further off, or a NaN.
    """
    for place, (x, y) in enumerate(zip(found, expected, strict=True)):
        if x.shape != y.shape:
            raise Mismatch(f"result {place} is {list(x.shape)}, expected {list(y.shape)}")
        if not y.is_floating_point():
            if not torch.equal(x, y):
                raise Mismatch(f"result {place}: other integers than the reference")
            continue
        difference, y = x.float() - y.float(), y.float()
        error, size = difference.norm().item(), y.norm().item()
        if not error <= tolerance * size:
            raise Mismatch(f"result {place} is off by {error:.3g} of {size:.3g}, allowed {tolerance:g} of it")
        if size == 0.0 or y.dim() == 0:
            continue
        width = y.shape[-1] if y.dim() > 1 else 1
        errors, sizes = difference.reshape(-1, width).norm(dim=1), y.reshape(-1, width).norm(dim=1)
        typical = sizes[sizes > 0].square().mean().sqrt()  # a table's gradient is zero in most rows
        shares = errors / sizes.maximum(typical)
        spared = int(moved * len(shares)) if place else 0
        row, allowed = int(shares.topk(spared + 1).indices[-1]), min(ROW * tolerance, 0.5)
        if shares[row] > allowed:
            raise Mismatch(
                f"row {row} of result {place} is off by {errors[row]:.3g} of {sizes[row]:.3g}, typical {typical:.3g}, "
                f"allowed {allowed:g} of the larger"
            )
