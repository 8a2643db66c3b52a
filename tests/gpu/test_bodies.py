"""The bodies of the GPU's tests on CPU tensors: every op on the C++ path, and the kernels in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.ops.case import FLOAT32, INT64, Case
from benchmarks.ops.check import Mismatch, Prepared
from benchmarks.ops.suite import FILES, tiny
from fastseq.ops import make_rng, set_backend
from tests.ops.backends import needs_triton

from . import bodies

CPU = torch.device("cpu")
each_file = pytest.mark.parametrize("file", FILES)


def kind(case: Case) -> str:
    return FLOAT32 if case.leaves else INT64


@each_file
def test_on_the_cpu(file: str) -> None:
    for case in tiny(CPU, [file]):
        Prepared(case, "fastseq", kind(case)).check()
        bodies.check_same_bits(case, kind(case), repeats=2)
        bodies.check_replay(case, kind(case), bodies.called_again)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU nothing is interpreted")
@each_file
def test_interpreted(file: str) -> None:
    with set_backend("triton"):
        for case in tiny(CPU, [file])[:2]:
            Prepared(case, "fastseq", kind(case), backend="triton").check()


def drawing(function: object) -> Case:
    """A case whose op is ``function``, not ours."""
    return Case("drawing", "[4]", {"fastseq": function}, [torch.ones(4)], torch.ones(4))  # type: ignore[dict-item]


def test_other_bits_are_found() -> None:
    with pytest.raises(AssertionError, match=r"result k differed in \[3, 0\] of 3 repeats"):
        bodies.check_same_bits(drawing(lambda p, x: x + torch.rand(4)), FLOAT32, repeats=3)


def test_a_replay_that_is_stale_is_found() -> None:
    def frozen(call: object) -> tuple[object, list[Tensor]]:
        return lambda: None, [x.detach() for x in call()]  # type: ignore[operator]

    case = Case("square", "[4]", {"fastseq": lambda p, x: x * x}, [torch.arange(4.0)], torch.ones(4))
    bodies.check_replay(case, FLOAT32, bodies.called_again)
    with pytest.raises(AssertionError, match="replay changes result 0"):
        bodies.check_replay(case, FLOAT32, frozen)  # type: ignore[arg-type]


def test_a_wrong_result_is_found() -> None:
    (case,) = tiny(CPU, ["dropout"])
    right, rng = case.functions["fastseq"], make_rng(9, 9)

    def other_mask(p: float, x: Tensor) -> Tensor:
        from fastseq.ops import dropout
        from fastseq.ops._dispatch import served

        return right(p, x) if served("dropout", "cpu").backend == "reference" else dropout(x, p, rng)

    wrong = Case("dropout", case.shape, {"fastseq": other_mask}, case.leaves, case.upstream, dropout_p=0.5)
    with pytest.raises(Mismatch, match="result 0 is off"):
        Prepared(wrong, "fastseq", FLOAT32).check()
    with pytest.raises(Mismatch, match=r"served by .*cpu.*expected triton"):
        Prepared(case, "fastseq", FLOAT32, backend="triton").check()
