"""linear_cross_entropy beside logits and cross_entropy in PyTorch, and on a GPU beside Liger's and Apple's kernels.

liger  Liger Kernel's fused linear cross-entropy (pip install liger-kernel)
cce    Apple's cut cross-entropy, without its gradient filter, which is not exact (pip install cut-cross-entropy)
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import linear_cross_entropy

from .case import (
    AUTOCAST,
    BATCHES,
    BEAUTY_ITEMS,
    EVENTS,
    FLOAT32,
    LARGE_ITEMS,
    ML_1M_ITEMS,
    WIDTH,
    Case,
    Function,
    Spec,
    dtypes_of,
)

CLASSES = {"ml-1m": ML_1M_ITEMS + 1, "beauty": BEAUTY_ITEMS + 1, "V=1M": LARGE_ITEMS + 1}  # with the padding row


def case(device: torch.device, data: str, rows: int = EVENTS) -> Case:
    return sized(device, f"{data} [{rows}, {CLASSES[data]}]", CLASSES[data], rows)


def sized(device: torch.device, shape: str, classes: int, rows: int, width: int = WIDTH) -> Case:
    targets = torch.randint(0, classes, (rows,), device=device)

    def fastseq(p: float, h: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(h, weight, targets)

    def eager(p: float, h: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, weight), targets)

    functions: dict[str, Function] = {"fastseq": fastseq, "eager": eager}
    missing: dict[str, str] = {}
    if device.type == "cuda":
        for name, find in (("liger", _liger), ("cce", _cce)):
            try:
                functions[name] = find(targets)
            except ImportError as error:
                missing[name] = f"not installed: {error}"
    leaves = [torch.randn(rows, width, device=device), 0.2 * torch.randn(classes, width, device=device)]
    forward, products = (rows + classes) * width, 2 * rows * classes * width
    return Case(
        "linear_cross_entropy", shape, functions, leaves, torch.tensor(1.0, device=device), missing=missing,
        products=True, indices=8 * rows, elements=(forward, 2 * forward), flops=(products, 2 * products),
    )  # fmt: skip


def _liger(targets: Tensor) -> Function:
    module: Any = importlib.import_module("liger_kernel.transformers")
    loss = module.LigerFusedLinearCrossEntropyLoss()
    return lambda p, h, weight: loss(weight, h, targets)


def _cce(targets: Tensor) -> Function:
    module: Any = importlib.import_module("cut_cross_entropy")
    return lambda p, h, weight: module.linear_cross_entropy(h, weight, targets, impl="cce_exact")


def suite(device: str) -> list[Spec]:
    if device == "cpu":
        return [
            Spec("linear_cross_entropy", partial(case, data=data), [FLOAT32, AUTOCAST]) for data in ("ml-1m", "beauty")
        ]
    # With 16,384 rows and 1M classes the reference's logits alone would take 66 GB: nothing to check against.
    shapes = [(data, rows) for rows in BATCHES for data in ("ml-1m", "beauty")] + [("V=1M", EVENTS)]
    return [Spec("linear_cross_entropy", partial(case, data=d, rows=rows), dtypes_of(True)) for d, rows in shapes]


def tiny(device: torch.device) -> list[Case]:
    return [sized(device, "tiny", 11, 5, 16)]
