"""embed_sequence: every implementation against the float64 reference."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq.ops import check_data, dropout, embed_sequence, make_rng, set_backend

from .backends import Function, check_cpu, check_threads, check_triton, moved, needs_triton, run

OPS = {"embed_sequence", "embed_sequence_backward"}
pytestmark = pytest.mark.filterwarnings("ignore:var")  # of the reference, without rows
RNG = make_rng(-5, 9)
V, L = 50, 40


def op(p: float, padding_idx: int | None = V) -> Function:
    def function(**tensors: Any) -> Tensor:
        rng = RNG.to(tensors["items"].device)
        return embed_sequence(**tensors, dropout_p=p, rng=rng, site=2, padding_idx=padding_idx)

    return function


def inputs(lengths: list[int], width: int, parts: str = "item position norm") -> tuple[dict[str, Any], Tensor]:
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    rows = int(offsets[-1])
    values: dict[str, Any] = {
        "items": torch.randint(0, V + 1, (rows,)) // 3 * 3 % (V + 1),  # repeats, ids without events, some padding
        "offsets": offsets,
        "item_weight": torch.randn(V + 1, width),
        "position_weight": torch.randn(L, width) if "position" in parts else None,
        "norm_weight": torch.randn(width) if "norm" in parts else None,
        "norm_bias": torch.randn(width) if "norm" in parts else None,
    }
    if rows:
        values["items"][0] = V
    return values, torch.randn(rows, width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("parts", ["item", "item position", "item norm", "item position norm"])
@pytest.mark.parametrize(
    ("lengths", "width"), [([1], 5), ([0, 3, 1, 0, 40, 0], 63), ([7] * 90 + [40] * 20, 24), ([], 8), ([0, 0], 8)]
)
def test_accuracy(
    lengths: list[int], width: int, parts: str, p: float, dtype: torch.dtype, poisoned_empty: None
) -> None:
    check_cpu(op(p), *inputs(lengths, width, parts), dtype, OPS)


TRITON = pytest.param("triton", marks=needs_triton)


@needs_triton
@pytest.mark.parametrize(
    ("lengths", "width", "parts", "p"),
    [
        ([1], 5, "item position norm", 0.3),
        ([0, 3, 1, 0, 40, 0], 63, "item position norm", 0.0),
        ([0, 3, 1, 0, 40, 0], 63, "item position norm", 0.3),
        ([5, 0, 9], 130, "item position", 0.3),
        ([5, 0, 9], 130, "item", 0.0),
        ([5, 0, 9], 24, "item norm", 0.3),
        ([2] * 30 + [7] * 5, 8, "item position norm", 0.3),
        ([], 8, "item position norm", 0.3),
        ([0, 0], 8, "item position norm", 0.3),
    ],
)
def test_triton(
    lengths: list[int], width: int, parts: str, p: float, monkeypatch: pytest.MonkeyPatch, poisoned_empty: None
) -> None:
    """Several tiles a program and several programs, groups of sequences that end inside a tile."""
    rows = importlib.import_module("fastseq.kernels.rows")
    kernels = importlib.import_module("fastseq.kernels.embed_sequence")
    monkeypatch.setattr(rows, "TILE", 256)
    monkeypatch.setattr(rows, "PARTIALS", 3)
    monkeypatch.setattr(kernels, "SEQUENCES", 5)
    check_triton(op(p), *inputs(lengths, width, parts), OPS)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_triton_half_types(dtype: torch.dtype, poisoned_empty: None) -> None:
    check_triton(op(0.3), *inputs([0, 7, 12], 24), OPS, dtype)


@needs_triton
def test_triton_marks_what_it_cannot_read() -> None:
    """Ids and positions without a row give NaN, in their row alone, without a look at the device."""
    values, _ = inputs([3, 5, 1], 8)
    values["items"] = torch.tensor([0, V + 1, 1, 2, -1, 3, 2**31, 4, 5])
    values["position_weight"] = values["position_weight"][:4].contiguous()
    with set_backend("triton"), check_data(False):
        y = op(0.0)(**moved(values, "triton")).cpu()
    assert y.isnan().any(1).tolist() == [False, True, False, False, True, False, True, True, False]
    assert torch.equal(y.isnan().any(1), y.isnan().all(1))


@pytest.mark.parametrize("backend", ["cpu", TRITON])
def test_padding_row_is_read_but_gets_no_gradient(backend: str) -> None:
    values, upstream = inputs([5, 9], 8, "item")
    results = run(op(0.0), values, upstream, backend, OPS)
    assert torch.equal(results["output"][0], values["item_weight"][V])
    assert not results["gradient of item_weight"][V].any()
    without = run(op(0.0, None), values, upstream, backend, OPS)["gradient of item_weight"]
    torch.testing.assert_close(without[V], upstream[values["items"] == V].sum(0))
    assert torch.equal(without[:V], results["gradient of item_weight"][:V])


def test_item_gradient_with_a_large_catalogue() -> None:
    """Ids beyond one digit of the radix sort, in every order."""
    size = 2**22 + 9
    items = torch.tensor([size - 1, 3, 2048, 2047, size - 1, 2**22, 3, 0])
    offsets = torch.tensor([0, 8], dtype=torch.int32)
    weight = torch.zeros(size, 1, requires_grad=True)
    upstream = torch.arange(1.0, 9.0).unsqueeze(1)
    embed_sequence(items, offsets, weight, padding_idx=None).backward(upstream)
    assert weight.grad is not None
    expected = torch.zeros(size, 1).index_add_(0, items, upstream)
    assert torch.equal(weight.grad, expected)


@pytest.mark.parametrize("backend", ["cpu", TRITON])
def test_mask_is_that_of_dropout(backend: str) -> None:
    values, _ = inputs([20, 30], 70, "item")
    with set_backend(backend):
        y = op(0.4)(**moved(values, backend)).cpu()
    assert torch.equal(y, dropout(values["item_weight"][values["items"]], 0.4, RNG, 2))


def test_threads() -> None:
    check_threads(op(0.3), *inputs([40, 0, 17] * 20, 66))
