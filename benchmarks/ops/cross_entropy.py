"""linear_cross_entropy beside logits and cross_entropy in PyTorch, and on a GPU beside Liger's and Apple's kernels.

liger  Liger Kernel's fused linear cross-entropy (pip install liger-kernel)
cce    Apple's cut cross-entropy, without its gradient filter, which is not exact (pip install cut-cross-entropy)
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import linear_cross_entropy

from .case import AUTOCAST, BATCHES, EVENTS, FLOAT32, ITEMS, PRODUCTS, WIDTH, Case, Cases, Function


def case(
    device: torch.device, data: str, rows: int = EVENTS, n_items: int = 0, width: int = WIDTH, triton: bool = False
) -> Case:
    classes = (n_items or ITEMS[data]) + 1  # with the padding row
    targets = torch.randint(0, classes, (rows,), device=device)
    functions: dict[str, Function] = {
        "fastseq": lambda p, h, weight: linear_cross_entropy(h, weight, targets),
        "eager": lambda p, h, weight: F.cross_entropy(F.linear(h, weight), targets),
    }
    missing: dict[str, str] = {}
    if triton or device.type != "cpu":
        for name, make in (("liger", _liger), ("cce", _cce)):
            try:
                functions[name] = make(targets)
            except ImportError as error:
                missing[name] = f"not installed: {error}"
    products = 2 * rows * classes * width
    return Case(
        "linear_cross_entropy", f"{data} [{rows}, {classes}]", functions,
        [torch.randn(rows, width, device=device), 0.2 * torch.randn(classes, width, device=device)],
        torch.tensor(1.0, device=device), missing=missing, products=True, indices=8 * rows,
        flops=(products, 2 * products),
    )  # fmt: skip


def _liger(targets: Tensor) -> Function:
    module: Any = importlib.import_module("liger_kernel.transformers")
    loss = module.LigerFusedLinearCrossEntropyLoss()
    return lambda p, h, weight: loss(weight, h, targets)


def _cce(targets: Tensor) -> Function:
    module: Any = importlib.import_module("cut_cross_entropy")
    return lambda p, h, weight: module.linear_cross_entropy(h, weight, targets, impl="cce", filter_eps=None)


SIZES = [("ml-1m", EVENTS), ("beauty", EVENTS)]
# With 16,384 rows and 1M classes the reference's logits alone would take 66 GB: nothing to check against.
LARGE = [("ml-1m", BATCHES[1]), ("beauty", BATCHES[1]), ("V=1M", EVENTS)]
CASES = [
    Cases(
        "linear_cross_entropy", case, "data rows", cpu=SIZES, cuda=SIZES + LARGE, tiny=[("tiny", 5, 10, 16)],
        dtypes=(FLOAT32, AUTOCAST), cuda_dtypes=PRODUCTS,
    )
]  # fmt: skip
