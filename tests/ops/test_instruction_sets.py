"""The C++ kernels on smaller instruction sets than this processor's best."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from fastseq import _C
from tests import run_python

ORDER = ["baseline", "avx2", "avx512"]
HELD_TO = os.environ.get("FASTSEQ_CPU_ISA", "avx512")
# By file: the tests that compare results with the reference, or bits with whole numbers.
TESTS = {
    "attention": "test_matches_reference and 24 or test_dropout_mask",
    "bias_gelu_dropout": "accuracy",
    "caser_windows": "first_of_equal_maxima",
    "cross_entropy": "accuracy",
    "dropout_add_norm": "accuracy",
    "embed_sequence": "accuracy",
    "gru_sampled_loss": "equals_its_parts",
    "instruction_sets": "no_more_than_asked",
    "linear": "accuracy or autocast",
    "negatives": "cpp_equals_reference",
    "philox": "masks",
}


def test_a_process_uses_no_more_than_asked() -> None:
    assert ORDER.index(_C.isa()) <= ORDER.index(HELD_TO)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ORDER[:-1])
def test_smaller_instruction_sets(isa: str) -> None:
    """The tests named above once more, in a process that is held to ``isa``."""
    if ORDER.index(_C.isa()) <= ORDER.index(isa):
        pytest.skip(f"this process already runs on {_C.isa()}")
    names = " or ".join(f"(test_{file} and ({tests}))" for file, tests in TESTS.items())
    files = [str(Path(__file__).with_name(f"test_{file}.py")) for file in TESTS]
    command = ["-m", "pytest", "-q", "-x", "-rp", "-k", f"({names}) and not triton", *files]
    done = run_python(*command, cwd=Path(__file__).parents[2], FASTSEQ_CPU_ISA=isa)
    passed = re.findall(r"^PASSED tests/ops/test_(\w+)\.py::(.*)$", done.stdout, re.MULTILINE)
    for file, tests in TESTS.items():
        for words in tests.split(" or "):
            words_of = words.split(" and ")
            assert any(name == file and all(word in test for word in words_of) for name, test in passed), (file, words)


def test_an_unknown_instruction_set_is_an_error() -> None:
    result = run_python("-c", "from fastseq import _C; _C.isa()", returncode=1, FASTSEQ_CPU_ISA="avx1024")
    assert "ValueError: FASTSEQ_CPU_ISA is 'avx1024', expected baseline, avx2 or avx512" in result.stderr
