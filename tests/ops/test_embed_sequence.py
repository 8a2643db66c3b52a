"""embed_sequence: every implementation against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq.ops import dropout, embed_sequence, make_rng

from .backends import Function, check_compiled, check_cpu, check_threads, run

OPS = {"embed_sequence", "embed_sequence_backward"}
RNG = make_rng(-5, 9)
V, L = 50, 40


def op(p: float, padding_idx: int | None = V) -> Function:
    def function(**tensors: Any) -> Tensor:
        return embed_sequence(**tensors, dropout_p=p, rng=RNG, site=2, padding_idx=padding_idx)

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
@pytest.mark.parametrize(("lengths", "width"), [([1], 5), ([0, 3, 1, 0, 40, 0], 63), ([7] * 90 + [40] * 20, 24)])
def test_accuracy(
    lengths: list[int], width: int, parts: str, p: float, dtype: torch.dtype, poisoned_empty: None
) -> None:
    check_cpu(op(p), *inputs(lengths, width, parts), dtype, OPS)


def test_padding_row_is_read_but_gets_no_gradient() -> None:
    values, upstream = inputs([5, 9], 8, "item")
    results = run(op(0.0), values, upstream, "cpu", OPS)
    assert torch.equal(results["output"][0], values["item_weight"][V])
    assert not results["gradient of item_weight"][V].any()
    without = run(op(0.0, None), values, upstream, "cpu", OPS)["gradient of item_weight"]
    assert torch.equal(without[V], upstream[values["items"] == V].sum(0))
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


def test_mask_is_that_of_dropout() -> None:
    values, _ = inputs([20, 30], 70, "item")
    y = op(0.4)(**values)
    assert torch.equal(y, dropout(values["item_weight"][values["items"]], 0.4, RNG, 2))


def test_threads() -> None:
    check_threads(op(0.3), *inputs([40, 0, 17] * 20, 66))


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_no_events(lengths: list[int]) -> None:
    results = run(op(0.3), *inputs(lengths, 8), "cpu", OPS)
    assert results.pop("output").shape == (0, 8)
    assert all(not gradient.any() for gradient in results.values())


@pytest.mark.parametrize("parts", ["item", "item position norm"])
def test_opcheck_and_compile(parts: str) -> None:
    values, upstream = inputs([3, 0, 4], 8, parts)
    arguments = [v if v is None or not v.is_floating_point() else v.clone().requires_grad_() for v in values.values()]
    torch.library.opcheck(torch.ops.fastseq.embed_sequence.default, (*arguments, 1e-8, 0.3, RNG, 1, V))
    items, offsets, item_weight, position_weight, norm_weight, _ = values.values()
    statistics = torch.rand(0 if norm_weight is None else 7), torch.rand(0 if norm_weight is None else 7)
    torch.library.opcheck(
        torch.ops.fastseq.embed_sequence_backward.default,
        (upstream, items, offsets, item_weight, position_weight, norm_weight, *statistics, 1e-8, 0.3, RNG, 1, V),
    )
    check_compiled(op(0.3), values, upstream)


def test_errors() -> None:
    values, _ = inputs([3, 2], 8)
    with pytest.raises(ValueError, match=r"items\[4\] is 51, expected 0 <= id < 51"):
        op(0.0)(**(values | {"items": torch.tensor([0, 1, 2, 3, V + 1])}))
    with pytest.raises(ValueError, match=r"items\[0\] is -1"):
        op(0.0)(**(values | {"items": torch.tensor([-1, 1, 2, 3, 4])}))
    with pytest.raises(ValueError, match="sequence 0 has 3 events, but position_weight has 2 rows"):
        op(0.0)(**(values | {"position_weight": torch.zeros(2, 8)}))
    with pytest.raises(ValueError, match="offsets ends at 4, expected the number of rows, 5"):
        op(0.0)(**(values | {"offsets": torch.tensor([0, 4], dtype=torch.int32)}))
    with pytest.raises(ValueError, match=r"offsets is torch.int64"):
        op(0.0)(**(values | {"offsets": torch.tensor([0, 5])}))
    with pytest.raises(ValueError, match="pass both or neither"):
        op(0.0)(**(values | {"norm_bias": None}))
    with pytest.raises(ValueError, match="padding_idx is 51"):
        op(0.0, V + 1)(**values)
