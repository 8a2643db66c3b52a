"""Bad input: what the public ops, C++ and fastseq/ops/_checks.py refuse, for every implementation alike."""

from __future__ import annotations

import math
import re
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

from fastseq import ops
from fastseq.ops import _checks, _dispatch

from .backends import DEVICE, moved, needs_triton
from .calls import CALLS, IN_PLACE, OFFSETS, SHARED, TABLE, B, D, T, V, results

Refused: TypeAlias = list[tuple[Any, ...]]
BACKENDS = ["cpu", "reference", pytest.param("triton", marks=needs_triton)]


def changed(x: Tensor, index: int | tuple[int, ...], value: int) -> Tensor:
    x = x.clone()
    x[index] = value
    return x


def beyond(name: str, ids: Tensor, *index: int) -> Refused:
    """Ids that are no rows of the item table, at ``index``."""
    where = re.escape(f"{name}{list(index)}")
    words = "expected an id from 0 to 10"
    return [({name: changed(ids, index, bad)}, f"{where} is {bad}, {words}", IndexError) for bad in (-1, V)]


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


# By subject, what several ops refuse alike: what a call changes, the words, and another error than ValueError.
OFFSETS_ARE_BAD: Refused = [
    ({"offsets": OFFSETS.long()}, r"offsets is torch\.int64.*expected torch\.int32"),
    ({"offsets": OFFSETS[:0]}, "offsets is (empty|torch.int32 .0.), expected"),
    ({"offsets": int32(1, 3, 3, T)}, "offsets must start at 0, not 1"),
    ({"offsets": int32(0, 4, 3, T)}, "offsets decreases at index 2: 4 then 3"),
    ({"offsets": int32(0, 3, 3, T - 1)}, "offsets ends at 6, expected the number of rows, 7"),
    ({"offsets": int32(0, 3, 3, T + 1)}, "offsets ends at 8, expected the number of rows, 7"),
]
TOO_LONG: Refused = [({"max_len": 3}, "sequence 2 has 4 rows, more than max_len, 3")]
TARGETS = torch.arange(3)
NEGATIVES = torch.tensor([[3, 4], [5, 6], [7, 8]])
IDS_ARE_BAD: Refused = [
    ({"targets": TARGETS.int()}, r"targets is torch\.int32"),
    ({"targets": TARGETS[1:]}, r"targets is torch.int64 \[2\], expected torch.int64 \[3\]"),
    ({"negatives": NEGATIVES.float()}, r"negatives is torch.float32 \[3, 2\], expected torch.int64 \[3, K\]"),
    *beyond("targets", TARGETS, 1),
    *beyond("negatives", NEGATIVES, 2, 1),
    *beyond("negatives", SHARED, 2),
]
SEEN_ARE_BAD: Refused = [({"seen_items": int32(4, 0, 2)}, r"seen_items is torch\.int32")]
EPS_IS_BAD: Refused = [
    ({"eps": eps}, f"eps is {eps}, expected a number, at least 0") for eps in (-1e-5, math.nan, math.inf)
]
RNG_IS_BAD: Refused = [
    ({"rng": None}, "rng is None"),
    ({"rng": torch.zeros(2)}, r"rng is torch\.float32"),
    ({"rng": torch.zeros(3, dtype=torch.int64)}, r"rng is torch.int64 \[3\]"),
]
# The samplers' sites, with whose words a mask would share its own, are among them.
SITE_IS_BAD: Refused = [({"site": x}, f"site is {x}, expected 0 <= site <= 0x7fff") for x in (-1, 0x8000)]
DROPOUT_IS_BAD: Refused = [*(({"dropout_p": p}, f"dropout_p is {p}") for p in (-0.1, 1.0)), *RNG_IS_BAD, *SITE_IS_BAD]
ATTENTION_IS_BAD: Refused = [
    *OFFSETS_ARE_BAD,
    *TOO_LONG,
    *DROPOUT_IS_BAD,
    ({"k": torch.zeros(T, 2, 16)}, r"q is \[\d, 2, 8\], k is \[7, 2, 16\]"),
    ({"k": torch.zeros(T, 2, D).half()}, "k is torch.float16 and q is torch.float32"),
    ({"q": torch.zeros(T, 16)}, r"expected \[rows, heads, head dim\]"),
]
HEADS: Refused = [
    (
        {name: torch.zeros(rows, 1, 0) for name, rows in (("q", queries), ("k", T), ("v", T))},
        "head dim is 0, expected at least 1",
    )
    for queries in (T, B)
]
GRU_IS_BAD: Refused = [
    *OFFSETS_ARE_BAD,
    *TOO_LONG,
    ({"x_gates": torch.zeros(T, 7)}, r"x_gates has shape \[7, 7\], expected \[T, 12\]"),
    ({"weight_hh": torch.zeros(12, 3)}, r"weight_hh has shape \[12, 3\], expected \[3H, H\]"),
    ({"bias_hh": torch.zeros(2)}, r"bias_hh has shape \[2\], expected \[12\]"),
]
BAD: dict[str, Refused] = {
    "adam_rows": [
        ({"rows": torch.tensor([3, V])}, r"rows\[1\] is 11, expected 0 to 10", IndexError),
        ({"rows": torch.tensor([-1, 3])}, r"rows\[0\] is -1, expected 0 to 10", IndexError),
        ({"rows": torch.tensor([3, 3])}, r"rows\[1\] is 3 after 3, expected ascending and distinct: sum the gradients"),
        ({"rows": torch.tensor([4, 3])}, r"rows\[1\] is 3 after 4, expected ascending"),
        ({"rows": int32(3, 4)}, r"rows is torch\.int32 \[2\], expected torch\.int64"),
        ({"rows": None}, r"grad is torch.float32 \[2, 8\], expected torch.float32 \[11, 8\]"),
        ({"rows": None, "grad": None}, "count is given without rows"),
        ({"count": torch.tensor([3])}, "count is 3, expected 0 to 2"),
        ({"clock": torch.tensor([0, 9])}, r"clock\[0\] is 0, expected at least 1 and a history with more than 9 rows"),
        ({"clock": torch.tensor([3, 999])}, r"a history with more than 1002 rows, not \d+: new_history makes both"),
        ({"last_step": torch.full((V,), 3).int()}, r"last_step\[3\] is 3, expected 0 or 1 to 2: clock\[0\] is 3"),
        ({"last_step": torch.full((V,), -1).int()}, r"last_step\[3\] is -1, expected 0 or 1 to 2"),
        ({"clock": torch.tensor([3, -2])}, r"last_step\[3\] is 1, expected 0 or 2 to 2"),
        ({"last_step": torch.zeros(3)}, r"last_step is torch.float32 \[3\], expected torch.int32 \[11\]"),
        ({"exp_avg": torch.zeros(2, 2)}, r"exp_avg is torch.float32 \[2, 2\]"),
        ({"grad": torch.zeros(2, 3)}, r"grad is torch.float32 \[2, 3\], expected torch.float32 \[2, 8\]"),
        (
            {"history": torch.zeros(99, 7).double()},
            r"history is torch.float64 \[99, 7\], expected torch.float64 \[99, 8\]",
        ),
        ({"eps": math.inf}, "eps is inf"),
        ({"betas": (1.0, 0.9)}, "betas is .1.0, 0.9., expected two numbers, at least 0 and below 1"),
        ({"betas": (0.95, 0.9)}, r"betas is .0.95, 0.9.: rows need betas\[0\] < sqrt\(betas\[1\]\)"),
    ],
    "bias_gelu_dropout": [({"bias": torch.zeros(3)}, r"bias is \[3\], expected \[8\]"), *DROPOUT_IS_BAD],
    "caser_windows": [
        *OFFSETS_ARE_BAD,
        ({"offsets": torch.tensor(0, dtype=torch.int32)}, r"offsets has shape \[\], expected \[1\]"),
        ({"sequences": torch.tensor([0, B, 2])}, r"sequences\[1\] is 3, expected 0 to 2"),
        ({"stops": torch.tensor([4, 5, 7])}, r"stops\[0\] is 4, expected a row of sequence 0, 0 to 3"),
        ({"stops": torch.tensor([3, 5, 2])}, r"stops\[2\] is 2, expected a row of sequence 2, 3 to 7"),
        ({"stops": torch.ones(3)}, "stops is torch.float32, expected torch.int64"),
        ({"weight_h": torch.zeros(5, 2, D)}, r"weight_h has shape \[5, 2, 8\], expected \[6, 2, 8\]"),
        ({"padding_row": torch.zeros(4)}, r"padding_row has shape \[4\], expected \[8\]"),
        ({"padding_row": torch.zeros(D).half()}, "padding_row is torch.float16 and x is torch.float32, expected one"),
    ],
    "causal_attention": [
        *OFFSETS_ARE_BAD[:2],
        *ATTENTION_IS_BAD,
        HEADS[0],
        ({"q": torch.zeros(5, 2, D)}, "q has 5 rows and k has 7"),
    ],
    "dropout": [
        *(({"p": p}, f"^p is {p}, expected 0 <= p < 1") for p in (-0.5, 1.0, math.nan)),
        ({"x": torch.tensor(1.0)}, "x has no dimensions"),
        *RNG_IS_BAD,
        *SITE_IS_BAD,
    ],
    "dropout_add_norm": [
        ({"residual": torch.zeros(2, D)}, r"residual is \[2, 8\], expected the shape of x, \[7, 8\]"),
        ({"x_bias": torch.zeros(4)}, r"x_bias is \[4\]"),
        *EPS_IS_BAD,
        *DROPOUT_IS_BAD,
    ],
    "embed_sequence": [
        *OFFSETS_ARE_BAD,
        *EPS_IS_BAD,
        *DROPOUT_IS_BAD,
        ({"items": torch.arange(T).int()}, r"items is torch\.int32"),
        ({"items": changed(torch.arange(T), 4, V)}, r"items\[4\] is 11, expected 0 <= id < 11"),
        ({"items": changed(torch.arange(T), 0, -1)}, r"items\[0\] is -1, expected 0 <= id < 11"),
        ({"position_weight": torch.zeros(3, 8)}, "sequence 2 has 4 events, but position_weight has 3 rows"),
        ({"norm_bias": None}, "pass both or neither"),
        ({"padding_idx": V}, "padding_idx is 11"),
    ],
    "gather_windows": [
        ({"tape": torch.arange(T).int()}, r"tape is torch.int32 \[7\], expected torch.int64 \[\*\]"),
        ({"starts": torch.tensor([0])}, r"starts is torch.int64 \[1\], expected torch.int64 \[2\]"),
        ({"inputs_before": torch.tensor([0, 2])}, r"inputs_before is torch.int64 \[2\], expected torch.int64 \[3\]"),
        ({"place": torch.tensor([0])}, r"place is torch.int64 \[1\], expected torch.int64 \[2\]"),
        ({"place": torch.tensor([1, 3])}, "place is 1, 3, expected 0 <= low <= high <= 2"),
        ({"place": torch.tensor([-1, 1])}, "place is -1, 1, expected"),
        ({"order": torch.tensor([2, 0])}, r"order\[0\] is 2, expected 0 <= window < 2"),
        ({"users": torch.tensor([0, 2])}, r"users\[0\] is 2, expected 0 <= user < 2"),
        *(
            ({name: torch.tensor([0, bad])}, "of window 1 are .*, expected 4 <= start < first_target <= stop < 7")
            for name, bad in (("starts", 3), ("stops", 7), ("first_targets", 4))
        ),
        ({"targets_before": torch.tensor([0, 1, 5])}, "targets_before is not the running sum of the windows in order"),
        ({"n_events": 1}, "n_events is 1, expected at least 3: the batch has 2 inputs, 1 sequences and 2 targets"),
        ({"n_events": 2}, "n_events is 2, expected at least 3"),
        ({"n_events": 6}, "n_sequences is 2, expected at least 3"),
        ({"n_targets": 1}, "n_targets is 1, expected at least 2"),
        ({"n_history": 1}, "n_history is 1, expected at least 2"),
        ({"history_before": None}, "n_history is 3, but history_before is None"),
        ({"n_sequences": -1}, "n_sequences is -1, expected 0 ... 2"),
        ({"max_len": 0}, "max_len is 0, expected 1 ... 2"),
    ],
    "gru": GRU_IS_BAD,
    "gru_sampled_loss": [
        *GRU_IS_BAD,
        *IDS_ARE_BAD,
        ({"dense_weight": torch.zeros(D, 3)}, r"dense_weight has shape \[8, 3\], expected \[d, 4\]"),
        ({"dense_bias": torch.zeros(3)}, r"dense_bias has shape \[3\], expected \[8\]"),
        ({"rows": torch.zeros(3)}, r"rows is torch.float32 \[3\], expected torch.int64"),
        ({"rows": torch.tensor([1, 2, T])}, "rows holds 7, expected 0 <= row < 7", IndexError),
        ({"rows": torch.tensor([1, 2, -1])}, "rows holds -1, expected 0 <= row < 7", IndexError),
    ],
    "last_query_attention": [
        *ATTENTION_IS_BAD,
        HEADS[1],
        ({"q": torch.zeros(T, 2, D)}, "q has 7 rows, expected one for each of 3 sequences"),
    ],
    "linear": [
        ({"weight": torch.zeros(5, 3)}, r"x is \[7, 8\] and weight \[5, 3\]"),
        ({"bias": torch.zeros(2)}, r"bias is \[2\], expected \[5\]"),
        ({"x": torch.zeros(T, D).half()}, "weight is torch.float32 and x is torch.float16"),
    ],
    "linear_cross_entropy": [
        ({"targets": TARGETS.int()}, r"targets is torch\.int32"),
        ({"targets": torch.tensor([0, V, 10])}, r"targets\[1\] is 11, expected 0 <= target < 11"),
        ({"targets": torch.tensor([0, -100, -1])}, r"targets\[2\] is -1, expected 0 <= target < 11"),
        ({"reduction": "median"}, "reduction is 'median'"),
        ({"softcap": 0.0}, r"softcap is 0\.0"),
        ({"bias": torch.zeros(3)}, r"bias is \[3\], expected \[11\]"),
    ],
    "sample_negatives": [
        *SEEN_ARE_BAD,
        *RNG_IS_BAD[1:],
        ({"users": torch.tensor([0, 2])}, r"users\[1\] is 2, expected 0 <= value < 2"),
        ({"users": torch.tensor([0.0, 1.0])}, r"users is torch.float32 \[2\], expected torch.int64"),
        ({"positives": torch.tensor([-1, 3])}, r"positives\[0\] is -1, expected 0 <= value < 11"),
        ({"positives": torch.tensor([1])}, r"positives is torch.int64 \[1\], expected torch.int64 \[2\]"),
        ({"seen_offsets": torch.tensor([0, 9, 3])}, "seen_offsets of user 0 are 0, 9, expected 0 <= begin <= end <= 3"),
        ({"seen_items": torch.tensor([V, 0, 2])}, r"seen_items\[0\] is 11, expected 0 <= value < 11"),
        ({"seen_items": torch.tensor([4, 2, 0])}, r"seen_items\[2\] is 0 after 2: those of user 1 must be strictly"),
        ({"k": -1}, "k is -1"),
        ({"n_items": 0}, "n_items is 0"),
        ({"alias": torch.zeros(V, dtype=torch.int64)}, "probability and alias must both be given"),
        ({**TABLE, "alias": changed(torch.arange(V), 4, V)}, r"alias\[4\] is 11, expected 0 <= value < 11"),
    ],
    "sample_shared_negatives": [
        ({"n_items": 2**31}, "n_items is 2147483648, expected 1 ... 2.*31 - 1"),
        ({**TABLE, "probability": torch.full((V,), -1)}, r"probability\[0\] is -1, expected 0 <= value < 4294967297"),
    ],
    "sampled_loss": [
        *IDS_ARE_BAD,
        ({"loss": "hinge"}, "loss is 'hinge', expected one of bpr, bce, gbce, sampled_softmax"),
        ({"reduction": "avg"}, "reduction is 'avg', expected one of none, mean, sum"),
        ({"loss": "sampled_softmax"}, "log_q is None"),
        ({"log_q": torch.zeros(3, 2)}, "log_q is given, but loss 'bpr' has no use for it"),
        ({"item_weight": torch.zeros(V, 7)}, r"h has shape \[3, 8\] and item_weight \[11, 7\]"),
        ({"padding_idx": -1}, r"padding_idx is -1, expected a row of item_weight, 0 \.\.\. 10, or None"),
        ({"padding_idx": V}, "padding_idx is 11"),
    ],
    "topk": [
        *SEEN_ARE_BAD,
        ({"k": 0}, "k is 0, expected 1 ... 2"),
        ({"weight": torch.ones(V, 4)}, r"h is \[2, 8\] and weight is \[11, 4\]"),
        ({"weight": torch.ones(V, D).half()}, "weight is torch.float16 and h is torch.float32"),
        ({"bias": torch.ones(4)}, r"bias is \[4\], expected \[11\]"),
        ({"seen_items": None}, "go together"),
        ({"seen_offsets": torch.tensor([0, 3])}, r"expected int32 or int64 \[3\]"),
        ({"seen_offsets": torch.tensor([1, 1, 3])}, "seen_offsets starts at 1 and ends at 3, expected 0 and 3"),
        ({"seen_offsets": torch.tensor([0, 1, 2])}, "seen_offsets starts at 0 and ends at 2, expected 0 and 3"),
        ({"seen_offsets": torch.tensor([0, 4, 3])}, "seen_offsets decreases at index 2: 4 then 3, expected ranges of"),
        ({"seen_items": torch.tensor([4, 0, V])}, r"seen_items\[2\] is 11, expected 0 <= id < 11"),
        ({"seen_items": torch.tensor([4, -1, 0])}, r"seen_items\[1\] is -1, expected 0 <= id < 11"),
    ],
    "transformer_layer": [
        *OFFSETS_ARE_BAD[:2],
        *EPS_IS_BAD,
        *DROPOUT_IS_BAD,
        ({"site": 0x7FFE}, "site is 32769"),
        ({"heads": 3}, "heads is 3, expected a divisor of 8"),
        ({"rows": int32(0, 2)}, r"rows is torch\.int32 \[2\], expected torch\.int64 \[N\]"),
        ({"rows": torch.tensor([0, T])}, "rows holds 7, expected 0 <= row < 7", IndexError),
        ({"rows": torch.tensor([1, 3, 2])}, r"rows\[2\] is 2, after 3: expected them to ascend; sort them"),
        ({"x": torch.zeros(T)}, r"x is \[7\], expected \[T, d\]"),
        ({"weight2": torch.zeros(3, D)}, r"weight2 is \[3, 8\], expected \[8, 12\]"),
        ({"in_bias": torch.zeros(3 * D).half()}, "in_bias is torch.float16 and x is torch.float32, expected one"),
    ],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_bad_input_is_named(name: str, backend: str) -> None:
    """The same words from C++, the reference and the Triton kernels, none of which has then been run or written."""
    assert BAD[name]
    for change, message, *error in BAD[name]:
        arguments = moved({**CALLS[name](), **change}, backend)
        before = {written: arguments[written].clone() for written in IN_PLACE.get(name, ())}
        with ops.set_backend(backend), ops.check_data(True), pytest.raises(*(error or [ValueError]), match=message):
            results(name, arguments)
        assert all(torch.equal(arguments[written], x) for written, x in before.items()), message


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_any_stride_is_read(name: str, backend: str) -> None:
    """Every argument with a gap between its elements: copied or followed, never misread; what is in place, written."""
    arguments = moved(CALLS[name](), backend)
    gaps = {
        key: torch.stack((x, x), -1)[..., 0] if isinstance(x, Tensor) and x.dim() else x for key, x in arguments.items()
    }
    with ops.set_backend(backend):
        strided, expected = results(name, gaps), results(name, arguments)
    for x, y in zip(strided, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_shapes_that_no_public_op_passes_are_refused_by_the_cpp_itself() -> None:
    """Its words stand: the check that explains data would stumble over the shape."""
    x, offsets = torch.zeros(2, 1, 4), int32(0, 2)
    with pytest.raises(ValueError, match=r"offsets has shape \[\]"):
        torch.ops.fastseq.causal_attention(x, x, x, offsets[0], 2, 0.0, None, 0, 0.5)


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
    for value, expected in (("", None), ("0", None), ("1", True)):
        monkeypatch.setenv("FASTSEQ_CHECK", value)
        assert _checks.from_environment() is expected


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
        _dispatch._dispatched("dropout", "cuda", *arguments)


def test_every_op_that_reads_data_is_checked() -> None:
    """An op with integers among its tensors has a check, or is the backward of one that has."""
    for op in _dispatch._files:
        schema = getattr(torch.ops.fastseq, op).default._schema
        data = {"offsets", "items", "targets", "users", "alias", "seen_items", "rows"}
        reads = data & {argument.name for argument in schema.arguments}
        if reads and not op.endswith("_backward"):
            assert op in _dispatch._data_checks, f"{op} reads {reads} unchecked"
