"""An implementation does what the op's reference does, before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastseq.ops import record_served, set_backend

from .case import AUTOCAST, BFLOAT16, BOTH, FLOAT16, FLOAT32, OURS, TF32, Case, Function

# Error allowed to an op, relative in the norm, for rounding and sums in another order. PyTorch's half-precision chains
# round between their parts and may lose more; that does not make them rivals of another function.
RIVALS = 4
ROW = 10  # the worst of many rows is further off than all in the norm; on the CPU by less than the tolerance itself
TOLERANCE = {FLOAT32: 1e-4, TF32: 5e-3, BFLOAT16: 2e-2, FLOAT16: 5e-3, AUTOCAST: 2e-2}
KINDS = {BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}


class Mismatch(AssertionError):
    """An implementation gives another result than the reference, or another one served."""


class Unavailable(Exception):
    """An implementation cannot run here; the message says why."""


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
        Unavailable: if it cannot run here.
        ValueError: if the case has no such implementation.
    """

    def __init__(self, case: Case, implementation: str, dtype: str, backend: str | None = None) -> None:
        if why := case.missing.get(implementation, case.no_compile if implementation == "compiled" else ""):
            raise Unavailable(why)
        name = "eager" if implementation == "compiled" else implementation
        if name not in case.functions:
            names = ", ".join([*case.functions, "compiled"])
            raise ValueError(f"implementation is {implementation!r}, expected one of {names} for {case.op}")
        if implementation in ("compiled", "flex"):
            torch._dynamo.reset()  # each case is compiled for its own shapes
        self.case, self.implementation, self.dtype, self.backend = case, implementation, dtype, backend
        kind = KINDS.get(dtype, torch.float32)
        # Copies: an op that works in place must leave the case to the next implementation as it was.
        self.leaves = [x.to(kind if x.is_floating_point() else x.dtype, copy=True) for x in case.leaves]
        self.upstream = None if case.upstream is None else case.upstream.to(kind)
        wrap = _under_autocast if dtype == AUTOCAST else lambda function: function
        self.ours, function = wrap(case.functions[OURS]), wrap(case.functions[name])
        self.function: Function = torch.compile(function) if implementation == "compiled" else function

    @contextmanager
    def ready(self, direction: str) -> Iterator[Callable[[], Any]]:
        """Yields a function that runs one call: evaluation, or a step of training with the case's dropout."""
        upstream = self.upstream if direction == BOTH else None
        function, p = self.function, 0.0 if upstream is None else self.case.dropout_p
        leaves = _leaves(self.leaves, None, upstream is not None)
        with torch.set_grad_enabled(upstream is not None), products(self.dtype):
            if upstream is None:
                yield lambda: function(p, *leaves)
            else:
                yield lambda: step(function, p, leaves, upstream)

    def once(
        self, p: float | None = None, *, gradients: bool = True, leaves: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Outputs and gradients of one call on copies of the leaves, since an op may work in place.

        Args:
            p: dropout; None: the case's.
            gradients: without them the outputs alone.
            leaves: in place of the case's.
        """
        return self._once(self.function, self.dtype, p, gradients, leaves or self.leaves)

    def _once(
        self, function: Function, dtype: str, p: float | None, gradients: bool, leaves: Sequence[Tensor]
    ) -> list[Tensor]:
        upstream = self.upstream if gradients else None
        copies = _leaves([x.detach().clone() for x in leaves], KINDS.get(dtype, torch.float32), upstream is not None)
        with torch.set_grad_enabled(upstream is not None), products(dtype):
            return step(function, self.case.dropout_p if p is None else p, copies, upstream)

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
        case, ours = self.case, self.implementation == OURS
        if not ours and case.valid is not None:
            if not case.valid(self.once(0.0)[0]):
                raise Mismatch(f"{self.implementation}: not a valid result of {case.op}")
            return
        known = {} if expected is None else expected
        p = case.dropout_p if ours else 0.0
        # Of a step without dropout, which the others need as well, the output alone.
        for dropout, gradients in [(0.0, False)] * (ours and self.upstream is not None) + [(p, True)]:
            results = self._served(dropout, gradients)
            if dropout not in known:
                with set_backend("reference"):
                    try:
                        known[dropout] = self._once(self.ours, FLOAT32, dropout, True, self.leaves)
                    except torch.OutOfMemoryError as error:
                        raise ReferenceOutOfMemoryError(str(error)) from error
            if case.agree is None:
                limit = case.tolerances.get(self.dtype, TOLERANCE.get(self.dtype, 0.0)) * (1 if ours else RIVALS)
                assert_close(results, known[dropout][: len(results)], limit, case.moved)
            elif not case.agree(results, known[dropout], self.leaves):
                raise Mismatch(f"{self.implementation} disagrees with the reference of {case.op}")

    def _served(self, p: float, gradients: bool) -> list[Tensor]:
        with record_served() as served:
            results = self.once(p, gradients=gradients)
        backend = self.backend or ("cpu" if results[0].device.type == "cpu" else "triton")
        identity = self.case.op == "dropout" and p == 0.0  # returns its input, served by nobody
        if self.implementation == OURS and not identity and {name for _, name in served} != {backend}:
            raise Mismatch(f"{self.case.op} was served by {sorted(set(served))}, expected {backend}")
        return results


def _leaves(leaves: Sequence[Tensor], kind: torch.dtype | None, gradients: bool) -> list[Tensor]:
    """The leaves with floating ones in ``kind`` (None: as they are), which may ask for gradients."""
    cast = [x.to(kind) if kind is not None and x.is_floating_point() else x for x in leaves]
    return [x.detach().requires_grad_(gradients and x.is_floating_point()) for x in cast]


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
    inputs = [x for x in leaves if x.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream.to(output.dtype))]


def assert_close(results: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float, moved: float = 0.0) -> None:
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
    for index, (x, y) in enumerate(zip(results, expected, strict=True)):
        if x.shape != y.shape:
            raise Mismatch(f"result {index} is {list(x.shape)}, expected {list(y.shape)}")
        if not y.is_floating_point():
            if not torch.equal(x, y):
                raise Mismatch(f"result {index}: other integers than the reference")
            continue
        difference, y = x.float() - y.float(), y.float()
        error, size = difference.norm().item(), y.norm().item()
        if not error <= tolerance * size:
            raise Mismatch(f"result {index} is off by {error:.3g} of {size:.3g}, allowed {tolerance:g} of it")
        if size == 0.0 or y.dim() == 0:
            continue
        width = y.shape[-1] if y.dim() > 1 else 1
        errors, sizes = difference.reshape(-1, width).norm(dim=1), y.reshape(-1, width).norm(dim=1)
        typical = sizes[sizes > 0].square().mean().sqrt()  # a table's gradient is zero in most rows
        shares = errors / sizes.maximum(typical)
        spared = int(moved * len(shares)) if index else 0
        row, allowed = int(shares.topk(spared + 1).indices[-1]), min(ROW * tolerance, 0.5)
        if shares[row] > allowed:
            raise Mismatch(
                f"row {row} of result {index} is off by {errors[row]:.3g} of {sizes[row]:.3g}, typical {typical:.3g}, "
                f"allowed {allowed:g} of the larger"
            )
