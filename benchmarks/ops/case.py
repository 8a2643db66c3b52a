"""What is measured: the inputs of one op in one shape, its implementations, and the work that the result needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]  # called as function(p, *leaves): a tensor or a tuple of them

OURS = "fastseq"
EVENTS, WIDTH = 2048, 128
ITEMS = {"ml-1m": 3416, "beauty": 54_542, "V=1M": 1_000_000}
BATCHES = (EVENTS, 8 * EVENTS)
MANY = 2048 * 200  # events of the large batch

FLOAT32, TF32, BFLOAT16, FLOAT16 = "float32", "tf32", "bfloat16", "float16"
AUTOCAST = "bfloat16 products"  # autocast over float32: what `precision: bf16` trains with
INT64 = "int64"  # of ops without floating inputs
FORWARD, BOTH = "forward", "forward + backward"
DIRECTIONS = (FORWARD, BOTH)


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
        agree: agree(results, expected, leaves) in place of equal integers.
        no_compile: why there is no "compiled".
        missing: rivals that cannot run here, and why.
        products: whether the FLOPs are matrix products, which matrix units can form.
        elements: floating numbers that must be read or written, (forward, backward), whatever an implementation keeps;
            of a table that is gathered from, the rows that are read. None: leaves and output once each, and backward
            the leaves, their gradients and the output's.
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
    elements: tuple[float, float] | None = None
    indices: float = 0.0
    flops: tuple[float, float] = (0.0, 0.0)

    @property
    def implementations(self) -> list[str]:
        """All names that a result can have, installed or not."""
        return [*self.functions, *self.missing, "compiled"]

    def work(self, direction: str, dtype: str) -> tuple[float, float, str | None]:
        """(bytes, FLOPs, how products are formed) of a direction in a type; see ``chips.Architecture.roof``."""
        parts = 2 if direction == BOTH else 1
        size = 2 if dtype in (BFLOAT16, FLOAT16) else 4
        kinds = {TF32: "tf32", BFLOAT16: "bf16", AUTOCAST: "bf16", FLOAT16: "fp16"}
        formed = kinds.get(dtype) if self.products else None
        inputs = sum(x.numel() for x in self.leaves if x.is_floating_point())
        output = 0 if self.upstream is None else self.upstream.numel()
        elements = self.elements or (inputs + output, 2 * inputs + output)
        return sum(elements[:parts]) * size + parts * self.indices, sum(self.flops[:parts]), formed


@dataclass(frozen=True)
class Spec:
    """A case that is built when its turn comes: the large ones fill gigabytes.

    Attributes:
        op: as of the case.
        make: the case, from a device and ``arguments``.
        dtypes: the types that it is measured in.
        directions: forward, or forward + backward too.
    """

    op: str
    make: Callable[..., Case]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    dtypes: Sequence[str] = (FLOAT32, BFLOAT16)
    directions: Sequence[str] = DIRECTIONS

    def build(self, device: torch.device) -> Case:
        return self.make(device, **self.arguments)

    @property
    def words(self) -> str:
        """The case before it is built."""
        return ", ".join(f"{key} {value}" for key, value in self.arguments.items()) or "reference configuration"


def specs(
    op: str,
    make: Callable[..., Case],
    names: str,
    sizes: Iterable[Sequence[Any]],
    dtypes: Sequence[str],
    directions: Sequence[str] = DIRECTIONS,
) -> list[Spec]:
    """One spec for each of ``sizes``, which are the arguments ``names`` of ``make``."""
    return [Spec(op, make, dict(zip(names.split(), size, strict=True)), dtypes, directions) for size in sizes]


def dtypes_of(device: str, products: bool = False, cpu: Sequence[str] = (FLOAT32,)) -> Sequence[str]:
    """The types of a case on "cpu" or "cuda", there with tf32 where there are products to form with it."""
    if device == "cpu":
        return cpu
    return (FLOAT32, TF32, BFLOAT16) if products else (FLOAT32, BFLOAT16)


@dataclass
class Batch:
    """A jagged batch: its name and the lengths of its sequences, longest first."""

    name: str
    lengths: list[int]

    def __post_init__(self) -> None:
        self.events, self.longest = sum(self.lengths), max(self.lengths)
        self.n_items = ITEMS.get(self.name.split(" ")[0], ITEMS["V=1M"])  # of its data set; of ``LARGE`` a million
        self.starts = [0, *accumulate(self.lengths)][:-1]  # first row of every sequence

    def __str__(self) -> str:
        return self.name

    def offsets(self, device: torch.device) -> Tensor:
        """int32 [B + 1], as the ops take them."""
        return torch.tensor([0, *self.lengths]).cumsum(0).int().to(device)

    def padded(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows [B, longest] (past the end: a sequence's last one again), and which of them are real."""
        position, length = torch.arange(self.longest), torch.tensor(self.lengths)[:, None]
        rows = torch.tensor(self.starts)[:, None] + torch.minimum(position, length - 1)
        return rows.to(device), (position < length).to(device)


# Lengths of the windows of one batch: the deciles of the data sets' own windows, adding up to 2,048 events.
_LENGTHS = {
    "ml-1m L=200": [200] * 6 + [160, 130, 110, 90, 76, 65, 53, 45, 38, 30, 23, 15, 13],
    "ml-1m L=50": [50] * 35 + [45, 40, 37, 34, 30, 26, 23, 20, 16, 12, 9, 6],
    "beauty L=50": [50, 50, 40, 40, 40, 28, 28, 28, 28, 24] + [20] * 6 + [16] * 8 + [13] * 9 + [11] * 9 + [9] * 9
    + [8] * 14 + [7] * 25 + [6] * 35 + [5] * 50 + [4] * 100,
}  # fmt: skip
LARGE = Batch("B=2048 L=200", [200] * 2048)


def batch_of(name: str, targets: int = EVENTS) -> Batch:
    """A batch of ``targets`` events; the reference configurations' number of targets is not in its name."""
    lengths = sorted(_LENGTHS[name] * (targets // EVENTS), reverse=True)
    return Batch(name if targets == EVENTS else f"{name}, {targets} targets", lengths)


def batches(device: str, *names: str) -> list[Batch]:
    """The batches of the data sets ``names`` on "cpu" or "cuda", there 8 times as large too, and ``LARGE``."""
    if device == "cpu":
        return [batch_of(name) for name in names]
    return [*(batch_of(name, targets) for targets in BATCHES for name in names), LARGE]
