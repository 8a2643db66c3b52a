"""Elements beyond 2**31 of a tensor: addresses have 64 bits in the kernels (and in the interpreter, as on a GPU)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastseq import ops

from .backends import needs_triton

pytestmark = [
    needs_triton,
    pytest.mark.skipif(torch.cuda.is_available(), reason="4 GB of memory that is never touched exist on the CPU only"),
]
WIDTH = 64
ROWS = 2**31 // WIDTH + 9


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tensor]:
    """float16 [ROWS, WIDTH], of which only the pages written below are ever in memory."""
    from triton.runtime import interpreter

    # It would copy every argument onto itself.
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    weight = torch.empty(ROWS, WIDTH, dtype=torch.float16)
    weight[-4:] = torch.randn(4, WIDTH, dtype=torch.float16)
    yield weight


def test_rows_of_an_item_table(table: Tensor) -> None:
    items = torch.tensor([ROWS - 1, ROWS - 4, ROWS - 2])
    offsets = torch.tensor([0, 3], dtype=torch.int32)
    h = torch.randn(1, WIDTH, dtype=torch.float16)
    with ops.set_backend("triton"):
        rows = ops.embed_sequence(items, offsets, table, padding_idx=None)
        loss = ops.sampled_loss(h, table, items[:1], items[None, 1:])
    assert torch.equal(rows, table[items])
    with ops.set_backend("reference"):
        small = torch.tensor([3, 0, 2])
        expected = ops.sampled_loss(h, table[-4:], small[:1], small[None, 1:])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", ["causal_attention", "last_query_attention"])
def test_rows_far_apart(name: str, table: Tensor) -> None:
    """Keys and values of which the last row lies beyond 2**31 elements from the first."""
    table[: 2 * WIDTH : WIDTH // 2] = 1.0
    far = table.view(-1).as_strided((2, 2, 16), (table.numel() - 64, 16, 1))
    far[0], far[1] = torch.randn(2, 16), torch.randn(2, 16)
    q = torch.randn(2 if name == "causal_attention" else 1, 2, 16, dtype=torch.float16)
    offsets = torch.tensor([0, 2], dtype=torch.int32)
    op = getattr(ops, name)
    with ops.set_backend("triton"):
        output = op(q, far, far, offsets, max_len=2)
    with ops.set_backend("reference"):
        expected = op(q, far.contiguous(), far.contiguous(), offsets, max_len=2)
    torch.testing.assert_close(output, expected, rtol=2e-3, atol=2e-3)
