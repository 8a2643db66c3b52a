"""Every op on the GPU, in every type that it takes; skipped without one. What is asked: bodies.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.ops.case import BFLOAT16, FLOAT16, FLOAT32, INT64, TF32, Case
from benchmarks.ops.check import Prepared
from benchmarks.ops.suite import FILES, specs, tiny
from fastseq.ops import dropout, make_rng, set_backend

from . import bodies

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: PyTorch sees none")
DEVICE = torch.device("cuda")
ONE_TYPE = {"negatives": [INT64], "adam_rows": [FLOAT32]}
CHOICES = [
    (file, dtype)
    for file in FILES
    if file != "linear"  # PyTorch's own on a GPU
    for dtype in ONE_TYPE.get(file, [FLOAT32, TF32, BFLOAT16, FLOAT16])
    if dtype != TF32 or any(case.products for case in tiny(torch.device("meta"), [file]))
]
each = pytest.mark.parametrize(("file", "dtype"), CHOICES)


def cases(file: str, dtype: str) -> Iterator[Case]:
    """The tiny cases of a file and the first of every op in a reference configuration's size."""
    yield from (c for c in tiny(DEVICE, [file]) if dtype != TF32 or c.products)
    done: set[str] = set()
    for spec in specs("cuda", [file]):
        if spec.op not in done and (dtype != TF32 or TF32 in spec.dtypes):
            done.add(spec.op)
            yield spec.build(DEVICE)


@each
def test_equals_the_reference(file: str, dtype: str) -> None:
    for case in cases(file, dtype):
        Prepared(case, "fastseq", dtype).check()


@each
def test_same_bits(file: str, dtype: str) -> None:
    for case in cases(file, dtype):
        bodies.check_same_bits(case, dtype)


@each
def test_cuda_graph(file: str, dtype: str) -> None:
    for case in cases(file, dtype):
        bodies.check_replay(case, dtype, bodies.cuda_graph)


def test_a_replayed_graph_draws_by_its_rng() -> None:
    """Seed and step are read on the device: the same graph drops other elements at the next step."""
    x, rng = torch.ones(64, 128, device=DEVICE), make_rng(3, 0, DEVICE)
    replay, (out,) = bodies.cuda_graph(lambda: [dropout(x, 0.5, rng)])
    masks = []
    for number in range(3):
        rng.copy_(make_rng(3, number))
        replay()
        with set_backend("reference"):
            assert torch.equal(out, dropout(x, 0.5, rng))
        masks.append(out.clone())
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])
