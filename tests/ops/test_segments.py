"""kernels/segments.py: the table gradient that embed_sequence and sampled_loss share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .backends import DEVICE, needs_triton
from .compare import assert_as_accurate


def problem(shape: tuple[int, ...], width: int, n_rows: int, skew: float) -> tuple[Tensor, Tensor, Tensor]:
    """ids, of which the low ones are frequent for a large ``skew``; coefficients; source."""
    ids = (n_rows * torch.rand(shape) ** (1 + skew)).long()
    return ids, torch.randn(shape), torch.randn(shape[0], width)


def dense(ids: Tensor, coefficients: Tensor | None, source: Tensor, padding_idx: int | None, n_rows: int) -> Tensor:
    rows = source[:, None, :].expand(-1, ids.numel() // max(len(source), 1), -1)
    if coefficients is not None:
        rows = rows * coefficients.view(*rows.shape[:2], 1)
    table = source.new_zeros(n_rows, source.shape[1])
    table.index_add_(0, ids.flatten(), rows.reshape(ids.numel(), source.shape[1]))
    if padding_idx is not None:
        table[padding_idx] = 0
    return table


@needs_triton
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("shape", "width", "n_rows", "skew"),
    [((1,), 1, 1, 0), ((130,), 7, 1, 0), ((37, 5), 24, 9, 0), ((111, 4), 130, 21, 9), ((64, 3), 260, 40, 2),
     ((0, 3), 8, 4, 0), ((5, 0), 8, 4, 0), ((5, 2), 0, 4, 0)],
)  # fmt: skip
def test_triton(
    shape: tuple[int, ...],
    width: int,
    n_rows: int,
    skew: float,
    weighted: bool,
    counted: bool,
    poisoned_empty: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Segments of no, one and many entries; whole chunks, and one segment that is all there is. Places that are counted
    and those of torch.sort."""
    from fastseq.kernels.segments import CHUNK, segment_sum

    from fastseq.kernels import segments

    if not counted:
        monkeypatch.setattr(segments, "RANKED", 0)
    ids, coefficients, source = problem(shape, width, n_rows, skew)
    weights = coefficients if weighted else None
    if skew == 9:
        assert ids.flatten().bincount().max() > 3 * CHUNK
    for padding_idx in (None, 0):
        arguments = (ids.to(DEVICE), None if weights is None else weights.to(DEVICE), source.to(DEVICE))
        sums = segment_sum(*arguments, padding_idx, n_rows)
        assert torch.equal(sums, segment_sum(*arguments, padding_idx, n_rows))
        exact = dense(ids, None if weights is None else weights.double(), source.double(), padding_idx, n_rows)
        plain = dense(ids, weights, source, padding_idx, n_rows)
        assert_as_accurate(sums.cpu(), plain, exact, 3, "table")


@needs_triton
@pytest.mark.parametrize("chunk", [2, 16, 64])
def test_triton_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way that segments can lie across chunks; integers, whose sums are exact in any order."""
    from fastseq.kernels import segments

    monkeypatch.setattr(segments, "CHUNK", chunk)
    monkeypatch.setattr(segments, "RANKED", 0)
    ids = torch.arange(40).repeat_interleave(torch.tensor([*range(20), *range(0, 100, 5)]))
    ids = ids[torch.randperm(len(ids))]
    coefficients, source = torch.randint(-3, 4, ids.shape).float(), torch.randint(-3, 4, (len(ids), 5)).half()
    sums = segments.segment_sum(ids.to(DEVICE), coefficients.to(DEVICE), source.to(DEVICE), 7, 40, torch.bfloat16)
    assert sums.dtype == torch.bfloat16
    expected = dense(ids, coefficients, source.float(), 7, 40)
    assert torch.equal(sums.float().cpu(), expected.bfloat16().float())


@needs_triton
def test_triton_leaves_out_ids_that_are_no_rows() -> None:
    from fastseq.kernels.segments import segment_sum

    ids = torch.tensor([3, -1, 0, 4, 2**31 + 1, 2**32 + 2, -(2**32) + 1, 1 - 2**63], device=DEVICE)
    table = segment_sum(ids, None, torch.ones(8, 2, device=DEVICE), None, 4)
    assert table[:, 0].tolist() == [1, 0, 0, 1]


@needs_triton
@pytest.mark.parametrize("count", [0, 1, 31, 200])
def test_order(count: int) -> None:
    """Of ids with what is no id, and of sequences by their lengths: that of a stable sort."""
    from fastseq.kernels.segments import longest_first, sort_ids

    ids = torch.randint(-3, 12, (count,))
    expected, order = torch.where((ids < 0) | (ids > 8), 9, ids).sort(stable=True)
    sorted_ids, entries = sort_ids(ids.to(DEVICE), 9)
    assert torch.equal(sorted_ids.cpu(), expected.int()) and torch.equal(entries.cpu().long(), order)
    assert sorted_ids.data_ptr() % 16 == entries.data_ptr() % 16 == 0  # kernels are compiled for either alignment
    lengths = torch.randint(0, 5, (count,))
    offsets = torch.cat((torch.zeros(1), lengths.cumsum(0))).int().to(DEVICE)
    expected = lengths.argsort(descending=True, stable=True)
    assert torch.equal(longest_first(offsets).cpu().long(), expected)
