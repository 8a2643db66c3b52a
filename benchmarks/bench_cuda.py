"""Every op's Triton kernel on the GPU beside its rivals there: the cases of benchmarks/ops for "cuda".

    pytest benchmarks/bench_cuda.py --benchmark-only -k "gru and float32"

Complete and long (torch.compile for every shape); `fastseq bench kernels` measures the same cases within a budget.
Without a GPU every case is skipped.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.ops.case import Case, Spec
from benchmarks.ops.check import ReferenceOutOfMemoryError
from benchmarks.ops.run import named
from benchmarks.ops.suite import specs

from .op_bench import DEVICE_TIME, measure

SPECS = specs("cuda")
RIVALS = {"causal_attention": ["nested", "flex"], "linear_cross_entropy": ["liger", "cce"]}
CASES = [
    pytest.param(spec, dtype, direction, name, id=f"{spec.op}-{named(spec)}-{dtype}-{direction}-{name}")
    for spec in SPECS
    for dtype in spec.dtypes
    for name in ["fastseq", "eager", *RIVALS.get(spec.op, []), "compiled"]
    for direction in spec.directions
]


@functools.lru_cache(maxsize=1)  # the tests of a case follow each other, and the next one needs the memory
def built(place: int, dtype: str) -> tuple[Case, dict[float, list[Tensor]]]:
    torch.cuda.empty_cache()
    return SPECS[place].build(torch.device("cuda")), {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: PyTorch sees none")
@pytest.mark.benchmark(timer=DEVICE_TIME.read)
@pytest.mark.parametrize(("spec", "dtype", "direction", "implementation"), CASES)
def test_cuda(benchmark: Any, spec: Spec, dtype: str, direction: str, implementation: str) -> None:
    case, expected = built(SPECS.index(spec), dtype)
    device = torch.device("cuda")
    try:
        measure(benchmark, implementation, case, direction=direction, dtype=dtype, device=device, expected=expected)
    except torch.OutOfMemoryError as error:
        if implementation == "fastseq" and not isinstance(error, ReferenceOutOfMemoryError):
            raise
        pytest.skip(f"{implementation}: out of memory, or the reference that it is checked against")
