"""Bad input: what the public ops, C++ and fastseq/ops/_checks.py refuse, for every implementation alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq import ops
from fastseq.ops import _checks, _dispatch

from .backends import DEVICE, needs_triton
from .calls import CALLS, IN_PLACE, OFFSETS, B, T, V, results

BACKENDS = ["cpu", "reference", pytest.param("triton", marks=needs_triton)]


def changed(x: Tensor, place: int | tuple[int, int], value: int) -> Tensor:
    x = x.clone()
    x[place] = value
    return x


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def moved(arguments: dict[str, Any], backend: str) -> dict[str, Any]:
    device = DEVICE if backend == "triton" else "cpu"
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in arguments.items()}


# Wrong types and shapes that all jagged ops refuse alike, then what their offsets may hold.
OFFSETS_ARE_BAD = [
    ({"offsets": OFFSETS.long()}, r"offsets is torch\.int64.*expected torch\.int32"),
    ({"offsets": OFFSETS[:0]}, "offsets is (empty|torch.int32 .0.), expected"),
    ({"offsets": int32(1, 3, 3, T)}, "offsets must start at 0, not 1"),
    ({"offsets": int32(0, 4, 3, T)}, "offsets decreases at index 2: 4 then 3"),
    ({"offsets": int32(0, 3, 3, T - 1)}, "offsets ends at 6, expected the number of rows, 7"),
    ({"offsets": int32(0, 3, 3, T + 1)}, "offsets ends at 8, expected the number of rows, 7"),
]
TOO_LONG = [({"max_len": 3}, "sequence 2 has 4 rows, more than max_len, 3")]
TARGETS = torch.arange(3)
NEGATIVES = torch.tensor([[3, 4], [5, 6], [7, 8]])
IDS_ARE_BAD = [
    ({"targets": TARGETS.int()}, r"targets is torch\.int32"),
    ({"negatives": NEGATIVES.float()}, r"negatives is torch\.float32"),
    ({"targets": changed(TARGETS, 1, V)}, r"targets\[1\] is 11, expected an id from 0 to 10"),
    ({"negatives": changed(NEGATIVES, (2, 1), -1)}, r"negatives\[2, 1\] is -1, expected an id from 0 to 10"),
]
SEEN_ARE_BAD = [({"seen_items": int32(4, 0, 2)}, r"seen_items is torch\.int32")]
HEADS = [({name: torch.zeros(rows, 1, 129) for name, rows in (("q", rows), ("k", T), ("v", T))},
          "head dim is 129, expected 1 to 128: use more heads") for rows in (T, B)]  # fmt: skip
BAD: dict[str, list[tuple[dict[str, Any], str]]] = {
    "adam_rows": [
        ({"rows": torch.tensor([3, V])}, r"rows\[1\] is 11, expected 0 to 10"),
        ({"rows": torch.tensor([-1, 3])}, r"rows\[0\] is -1, expected 0 to 10"),
        ({"rows": torch.tensor([3, 3])}, r"rows\[1\] is 3 again, as rows\[0\]: sum the gradients of equal rows first"),
        ({"rows": int32(3, 4)}, r"rows is torch\.int32 \[2\], expected torch\.int64 \[2\]"),
        ({"step": torch.tensor(0)}, "step is 0, expected at least 1"),
        ({"last_step": torch.full((V,), 1)}, r"last_step\[0\] is 1, expected 0 to 0: step is 1"),
    ],
    "bias_gelu_dropout": [({"bias": torch.zeros(3)}, r"bias is \[3\], expected \[8\]")],
    "caser_windows": [
        ({"offsets": int32(0, 3, 3, T + 1)}, "offsets ends at 8, expected the number of rows, 7"),
        *OFFSETS_ARE_BAD[:5],
        ({"sequences": torch.tensor([0, B, 2])}, r"sequences\[1\] is 3, expected 0 to 2"),
        ({"stops": torch.tensor([4, 5, 7])}, r"stops\[0\] is 4, expected a row of sequence 0, 0 to 3"),
        ({"stops": torch.tensor([3, 5, 2])}, r"stops\[2\] is 2, expected a row of sequence 2, 3 to 7"),
    ],
    "causal_attention": [*OFFSETS_ARE_BAD, *TOO_LONG, HEADS[0]],
    "dropout": [({"p": 1.0}, "p is 1.0, expected 0 <= p < 1")],
    "dropout_add_norm": [({"residual": torch.zeros(2, 8)}, r"residual is \[2, 8\], expected the shape of x")],
    "embed_sequence": [
        *OFFSETS_ARE_BAD,
        ({"items": torch.arange(T).int()}, r"items is torch\.int32"),
        ({"items": changed(torch.arange(T), 4, V)}, r"items\[4\] is 11, expected 0 <= id < 11"),
        ({"items": changed(torch.arange(T), 0, -1)}, r"items\[0\] is -1, expected 0 <= id < 11"),
        ({"position_weight": torch.zeros(3, 8)}, "sequence 2 has 4 events, but position_weight has 3 rows"),
    ],
    "gru": [*OFFSETS_ARE_BAD, *TOO_LONG],
    "gru_sampled_loss": [
        *OFFSETS_ARE_BAD,
        *TOO_LONG,
        *IDS_ARE_BAD,
        ({"rows": torch.tensor([1, 2, T])}, "rows holds 7, expected 0 <= row < 7"),
    ],
    "last_query_attention": [*OFFSETS_ARE_BAD[2:], *TOO_LONG, HEADS[1]],
    "linear": [({"weight": torch.zeros(5, 3)}, r"x is \[7, 8\] and weight \[5, 3\]")],
    "linear_cross_entropy": [
        ({"targets": TARGETS.int()}, r"targets is torch\.int32"),
        ({"targets": torch.tensor([0, V, 10])}, r"targets\[1\] is 11, expected 0 <= target < 11"),
        ({"targets": torch.tensor([0, -100, -1])}, r"targets\[2\] is -1, expected 0 <= target < 11"),
    ],
    "sample_negatives": [
        *SEEN_ARE_BAD,
        ({"users": torch.tensor([0, 2])}, r"users\[1\] is 2, expected 0 <= value < 2"),
        ({"positives": torch.tensor([-1, 3])}, r"positives\[0\] is -1, expected 0 <= value < 11"),
        ({"seen_offsets": torch.tensor([0, 9, 3])}, "seen_offsets of user 0 are 0, 9, expected 0 <= begin <= end <= 3"),
        ({"seen_items": torch.tensor([V, 0, 2])}, r"seen_items\[0\] is 11, expected 0 <= value < 11"),
        (
            {"seen_items": torch.tensor([4, 2, 0])},
            r"seen_items\[2\] is 0 after 2: those of user 1 must be strictly asc",
        ),
        (
            {"probability": torch.zeros(V, dtype=torch.int64), "alias": changed(torch.arange(V), 4, V)},
            r"alias\[4\] is 11, expected 0 <= value < 11",
        ),
    ],
    "sample_shared_negatives": [
        ({"n_items": 2**31}, "n_items is 2147483648, expected 1 ... 2.*31 - 1"),
        (
            {"probability": torch.full((V,), -1), "alias": torch.arange(V)},
            r"probability\[0\] is -1, expected 0 <= value < 4294967297",
        ),
    ],
    "sampled_loss": IDS_ARE_BAD,
    "topk": [
        *SEEN_ARE_BAD,
        ({"seen_offsets": torch.tensor([1, 1, 3])}, "seen_offsets starts at 1 and ends at 3, expected 0 and 3"),
        (
            {"seen_offsets": torch.tensor([0, 4, 3])},
            "seen_offsets decreases at index 2: 4 then 3, expected ranges of 3",
        ),
        ({"seen_items": torch.tensor([4, 0, V])}, r"seen_items\[2\] is 11, expected 0 <= id < 11"),
    ],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_bad_input_is_named(name: str, backend: str) -> None:
    """The same words from C++, the reference and the Triton kernels, none of which has then been run or written."""
    assert BAD[name]
    for change, message in BAD[name]:
        arguments = moved({**CALLS[name](), **change}, backend)
        before = {written: arguments[written].clone() for written in IN_PLACE.get(name, ())}
        with ops.set_backend(backend), ops.check_data(True), pytest.raises((ValueError, IndexError), match=message):
            results(name, arguments)
        assert all(torch.equal(arguments[written], x) for written, x in before.items()), message


@needs_triton
@pytest.mark.parametrize("name", CALLS)
def test_any_stride_is_read(name: str) -> None:
    """Every argument with a gap between its elements: copied or followed, never misread."""
    arguments = moved(CALLS[name](), "triton")
    gaps = {
        key: torch.stack((x, x), -1)[..., 0] if isinstance(x, Tensor) and x.dim() else x for key, x in arguments.items()
    }
    with ops.set_backend("triton"):
        found, expected = results(name, gaps), results(name, arguments)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@needs_triton
def test_too_wide_for_a_row_on_chip() -> None:
    x = torch.zeros(1, 32769, device=DEVICE)
    vector, items = torch.zeros(32769, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    offsets = int32(0, 1).to(DEVICE)
    for call in (
        lambda: ops.dropout_add_norm(x, x, vector, vector),
        lambda: ops.embed_sequence(items, offsets, x, padding_idx=None),
        lambda: ops.sampled_loss(x, x, items, items[:, None]),
    ):
        with ops.set_backend("triton"), pytest.raises(ValueError, match="32769 columns, expected at most 32768"):
            call()


def test_when_data_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU; on a GPU where it is asked for, but for the capture of a graph, which cannot wait."""
    capturing = False
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    assert [_checks.wanted("cpu"), _checks.wanted("cuda")] == [True, False]
    with ops.check_data(True):
        assert [_checks.wanted("cpu"), _checks.wanted("cuda")] == [True, True]
        capturing = True
        assert [_checks.wanted("cpu"), _checks.wanted("cuda")] == [True, False]
    with ops.check_data(False):
        assert [_checks.wanted("cpu"), _checks.wanted("cuda")] == [False, False]
    assert [_checks.wanted("cpu"), _checks.wanted("cuda")] == [True, False]
    for value, chosen in (("", None), ("0", None), ("1", True)):
        monkeypatch.setenv("FASTSEQ_CHECK", value)
        assert _checks.from_environment() is chosen


def test_tensors_of_two_devices_are_named() -> None:
    """Where one is on meta torch asks for shapes alone: what came back would be memory that nobody wrote."""
    for name, build in CALLS.items():
        arguments = build()
        tensors = [key for key, value in arguments.items() if isinstance(value, Tensor)]
        for key in tensors if len(tensors) > 1 else ():
            with pytest.raises(ValueError, match=r"is on (cpu|meta), expected (cpu|meta) as "):
                results(name, {**arguments, key: arguments[key].to("meta")})
    with pytest.raises(ValueError, match=r"weight is on meta, expected cpu as x: weight\.to\('cpu'\)"):
        ops.linear(torch.ones(2, 8), torch.ones(3, 8, device="meta"))
    arguments = (torch.ones(2, 8), 0.5, ops.make_rng(0, device="meta"), 0)  # as the dispatcher passes those of a GPU
    with pytest.raises(ValueError, match=r"rng is on meta, expected cpu as x: rng\.to\('cpu'\)"):
        _dispatch._call("dropout", "cuda", arguments)


def test_every_op_that_reads_data_is_checked() -> None:
    """An op with integers among its tensors has a check, or is the backward of one that has."""
    for op in _dispatch._files:
        schema = getattr(torch.ops.fastseq, op).default._schema
        data = {"offsets", "items", "targets", "users", "alias", "seen_items", "rows"}
        reads = data & {argument.name for argument in schema.arguments}
        if reads and not op.endswith("_backward"):
            assert op in _dispatch._data_checks, f"{op} reads {reads} unchecked"
