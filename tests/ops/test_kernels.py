"""kernels/ as a package of a plain checkout, and its elementary functions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from fastseq.kernels.elementary import normal_cdf, sigmoid, softplus, tanh  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ULP = 2.0**-24


def test_a_plain_checkout_has_the_kernels() -> None:
    """Without an installation and without a link: fastseq/kernels.py leads to the folder kernels/."""
    program = "import fastseq.kernels.gru as gru; print(gru.__file__)"
    environment = {**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert not (ROOT / "fastseq" / "kernels").exists(), "a link of an older checkout: remove fastseq/kernels"
    assert Path(done.stdout.strip()) == ROOT / "kernels" / "gru.py"


@triton.jit
def evaluate(x, y, n, SIZE: tl.constexpr):
    index = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    value = tl.load(x + index, mask=index < n, other=0.0)
    soft, slope = softplus(value)
    tl.store(y + index, sigmoid(value), mask=index < n)
    tl.store(y + n + index, tanh(value), mask=index < n)
    tl.store(y + 2 * n + index, soft, mask=index < n)
    tl.store(y + 3 * n + index, slope, mask=index < n)
    tl.store(y + 4 * n + index, normal_cdf(value), mask=index < n)


def evaluated(x: Tensor) -> Tensor:
    """float32 [5, N]: sigmoid, tanh, softplus, its derivative and the normal distribution function of ``x`` [N]."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    y = torch.empty(5, x.numel(), device=device)
    evaluate[triton.cdiv(x.numel(), 4096),](x.to(device), y, x.numel(), SIZE=4096)
    return y.cpu()


FUNCTIONS: list[tuple[Callable[[Tensor], Tensor], float]] = [
    (torch.sigmoid, 5 * ULP),
    (torch.tanh, 5 * ULP),
    (torch.nn.functional.softplus, 6 * ULP),
    (torch.sigmoid, 5 * ULP),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's exp errs by more than the interpreter's")
def test_elementary_functions_are_right_to_their_last_bits() -> None:
    near, far = torch.rand(100_000) - 0.5, 40.0 * torch.rand(100_000) - 20.0
    x = torch.cat((near, near * 1e-3, near * 1e-30, far))
    y = evaluated(x)
    for row, (function, limit) in zip(y, FUNCTIONS, strict=False):
        exact = function(x.double())
        assert ((row - exact).abs() / exact.abs()).max() < limit, function.__name__
    cdf = torch.special.ndtr(x.double())
    assert (y[4] - cdf).abs().max() < 2 * ULP  # absolute: it multiplies what it is given


def test_elementary_functions_have_their_limits() -> None:
    infinity = float("inf")
    y = evaluated(torch.tensor([-infinity, infinity, -200.0, 200.0, 0.0, float("nan")]))
    assert y[0, :5].tolist() == [0.0, 1.0, 0.0, 1.0, 0.5]
    assert y[1, :5].tolist() == [-1.0, 1.0, -1.0, 1.0, 0.0]
    assert y[2, :4].tolist() == [0.0, infinity, 0.0, 200.0] and y[3, :5].tolist() == [0.0, 1.0, 0.0, 1.0, 0.5]
    assert y[4, :5].tolist() == [0.0, 1.0, 0.0, 1.0, 0.5] and y[:, 5].isnan().all()
