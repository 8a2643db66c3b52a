"""What is measured: the inputs of one op in one shape, its implementations, and the work that the result needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]  # called as function(p, *leaves): a tensor or a tuple of them

EVENTS, WIDTH = 2048, 128
ML_1M_ITEMS, BEAUTY_ITEMS, LARGE_ITEMS = 3416, 54_542, 1_000_000
BATCHES = (EVENTS, 8 * EVENTS)
LARGE = "B=2048 L=200"

# Lengths of the windows of one batch: the deciles of the data sets' own windows, adding up to 2,048 events.
LENGTHS = {
    "ml-1m L=200": [200] * 6 + [160, 130, 110, 90, 76, 65, 53, 45, 38, 30, 23, 15, 13],
    "ml-1m L=50": [50] * 35 + [45, 40, 37, 34, 30, 26, 23, 20, 16, 12, 9, 6],
    "beauty L=50": [50, 50, 40, 40, 40, 28, 28, 28, 28, 24] + [20] * 6 + [16] * 8 + [13] * 9 + [11] * 9 + [9] * 9
    + [8] * 14 + [7] * 25 + [6] * 35 + [5] * 50 + [4] * 100,
}  # fmt: skip

FLOAT32, TF32, BFLOAT16, FLOAT16 = "float32", "tf32", "bfloat16", "float16"
AUTOCAST = "bfloat16 products"  # autocast over float32: what `precision: bf16` trains with
FORWARD, BOTH = "forward", "forward + backward"
DIRECTIONS = [FORWARD, BOTH]


@dataclass(frozen=True)
class Case:
    """One op in one shape on one device.

    Attributes:
        op: name of the public function.
        shape: sizes in words.
        functions: "fastseq" the op, "eager" the best plain PyTorch for the same work, others by names of their own.
            "compiled", torch.compile of "eager", is made where it is measured.
        leaves: their arguments; floating ones are cast to the type that is measured.
        upstream: gradient of the output; None: there are no gradients.
        dropout_p: of "forward + backward", a step of training; "forward" is evaluation.
        tolerances: error allowed by type, relative in the norm, where it is not that of the type (``check.TOLERANCE``).
        moved: share of the gradients' rows that may be off by more than ``check.assert_close`` allows a row: where
            rounding decides which of two rows a gradient goes to.
        valid: judges a result of an implementation that draws random numbers of its own, in place of the reference.
        agree: agree(found, expected, leaves) in place of equal integers.
        no_compile: why there is no "compiled".
        missing: rivals that cannot run here, and why.
        products: whether the FLOPs are matrix products, which matrix units can form.
        elements: floating numbers that must be read or written, (forward, backward): inputs and outputs once each,
            whatever an implementation keeps. Of a table that is gathered from, the rows that are read.
        indices: bytes of ids and offsets that must be read or written in each direction.
        flops: additions and multiplications that the result needs, (forward, backward).
    """

    op: str
    shape: str
    functions: Mapping[str, Function]
    leaves: Sequence[Tensor]
    upstream: Tensor | None = None
    dropout_p: float = 0.0
    tolerances: Mapping[str, float] = field(default_factory=dict)
    moved: float = 0.0
    valid: Callable[[Any], bool] | None = None
    agree: Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], bool] | None = None
    no_compile: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    products: bool = False
    elements: tuple[float, float] = (0.0, 0.0)
    indices: float = 0.0
    flops: tuple[float, float] = (0.0, 0.0)

    def work(self, direction: str, dtype: str) -> tuple[float, float, str | None]:
        """(bytes, FLOPs, how products are formed) of a direction in a type; see ``chips.Architecture.roof``."""
        parts = 2 if direction == BOTH else 1
        size = 2 if dtype in (BFLOAT16, FLOAT16) else 4
        kinds = {TF32: "tf32", BFLOAT16: "bf16", AUTOCAST: "bf16", FLOAT16: "fp16"}
        formed = kinds.get(dtype) if self.products else None
        return sum(self.elements[:parts]) * size + parts * self.indices, sum(self.flops[:parts]), formed


@dataclass(frozen=True)
class Spec:
    """A case that is built when its turn comes: the large ones fill gigabytes.

    Attributes:
        op: as of the case.
        build: the case on a device.
        dtypes: the types that it is measured in.
        directions: forward, or forward + backward too.
    """

    op: str
    build: Callable[[torch.device], Case]
    dtypes: Sequence[str] = (FLOAT32, BFLOAT16)
    directions: Sequence[str] = (FORWARD, BOTH)


def dtypes_of(products: bool) -> tuple[str, ...]:
    """The types of a CUDA case: tf32 only where there are products to form with it."""
    return (FLOAT32, TF32, BFLOAT16) if products else (FLOAT32, BFLOAT16)


def lengths_of(batch: str, targets: int = EVENTS) -> list[int]:
    """Lengths of a batch of ``targets`` events, longest first; LARGE has its own number."""
    return [200] * 2048 if batch == LARGE else sorted(LENGTHS[batch] * (targets // EVENTS), reverse=True)


def described(batch: str, targets: int) -> str:
    """A batch in words; the seed's number of targets goes without saying."""
    return batch if targets == EVENTS or batch == LARGE else f"{batch}, {targets} targets"


def offsets_of(lengths: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """int32 [B + 1], as the ops take them."""
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


def padded_rows(lengths: Sequence[int], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Rows [B, longest] of a jagged batch (past the end: a sequence's last one again), and which of them are real."""
    position, length = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
    rows = offsets_of(lengths)[:-1, None].long() + torch.minimum(position, length - 1)
    return rows.to(device), (position < length).to(device)
