"""causal_attention and last_query_attention: every implementation against the float64 reference."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastseq.ops import causal_attention, last_query_attention, make_rng, record_served, set_backend
from fastseq.ops.reference.philox import keep_mask
from tests.ops.backends import DEVICE, check_same_on_threads, needs_triton
from tests.ops.compare import assert_as_accurate, relative_error

LENGTHS = [0, 1, 63, 64, 65, 0, 111, 200, 2]
HEADS, SITE, P = 3, 11, 0.3
RNG = make_rng(2**40 + 7, 5)
OPS: list[Callable[..., Tensor]] = [causal_attention, last_query_attention]


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def inputs(
    op: Callable[..., Tensor],
    lengths: list[int],
    width: int,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    heads: int = HEADS,
) -> tuple[list[Tensor], Tensor]:
    """q, k, v that want gradients, and a random upstream gradient."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    queries = total if op is causal_attention else len(lengths)
    shapes = [(rows, heads, width) for rows in (queries, total, total, queries)]
    q, k, v, grad = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    return [x.requires_grad_() for x in (q, k, v)], grad


def run(
    op: Callable[..., Tensor], qkv: list[Tensor], grad: Tensor, lengths: list[int], dropout_p: float = P, **more: Any
) -> list[Tensor]:
    """The output and the gradients of q, k and v."""
    device, length = grad.device, max(lengths, default=0)
    offsets, rng = offsets_of(lengths).to(device), RNG.to(device)
    out = op(*qkv, offsets, max_len=length, dropout_p=dropout_p, rng=rng, site=SITE, **more)
    return [out.detach(), *torch.autograd.grad(out, qkv, grad)]


def reference(op: Callable[..., Tensor], qkv: list[Tensor], grad: Tensor, *rest: Any, **more: Any) -> list[Tensor]:
    with set_backend("reference"):
        return run(op, qkv, grad, *rest, **more)


def in_float64(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in tensors]


NAMES = ["out", "grad_q", "grad_k", "grad_v"]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dropout_p", [0.0, P])
@pytest.mark.parametrize("width", [8, 24, 32, 60, 128])
def test_matches_reference(op: Callable[..., Tensor], width: int, dropout_p: float, poisoned_empty: None) -> None:
    qkv, grad = inputs(op, LENGTHS, width, torch.float32)
    exact = reference(op, in_float64(qkv), grad.double(), LENGTHS, dropout_p)
    pytorch = reference(op, qkv, grad, LENGTHS, dropout_p)
    with record_served() as served:
        results = run(op, qkv, grad, LENGTHS, dropout_p)
    name = op.__name__
    assert served == [(name, "cpu"), (f"{name}_backward", "cpu")]
    for i, (result, other, best) in enumerate(zip(results, pytorch, exact, strict=True)):
        assert_as_accurate(result, other, best, 3 if i else 2, NAMES[i])
    for result, best in zip(run(op, in_float64(qkv), grad.double(), LENGTHS, dropout_p), exact, strict=True):
        assert relative_error(result, best) < 5e-15


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(op: Callable[..., Tensor], dtype: torch.dtype) -> None:
    qkv, grad = inputs(op, LENGTHS, 32, dtype)
    exact = reference(op, in_float64(qkv), grad.double(), LENGTHS)
    for result, best in zip(run(op, qkv, grad, LENGTHS), exact, strict=True):
        assert result.dtype == dtype
        assert relative_error(result, best) < 0.6 * torch.finfo(dtype).eps  # rounded once


def check_triton(
    op: Callable[..., Tensor], lengths: list[int], width: int, dropout_p: float, dtype: torch.dtype = torch.float32
) -> None:
    """The kernels against float64, by the rule; on a GPU, or without one interpreted."""
    qkv, grad = inputs(op, lengths, width, dtype, heads=2)
    exact = reference(op, in_float64(qkv), grad.double(), lengths, dropout_p)
    pytorch = reference(op, qkv, grad, lengths, dropout_p)
    moved = [x.detach().to(DEVICE).requires_grad_() for x in qkv]
    with set_backend("triton"), record_served() as served:
        results = run(op, moved, grad.to(DEVICE), lengths, dropout_p)
    name = op.__name__
    assert served == [(name, "triton"), (f"{name}_backward", "triton")]
    for i, (result, other, best) in enumerate(zip(results, pytorch, exact, strict=True)):
        assert result.dtype == dtype
        assert_as_accurate(result.cpu(), other, best, 3 if i else 2, NAMES[i])


@needs_triton
@pytest.mark.parametrize(
    ("lengths", "dropout_p"), [([9], 0.0), ([0, 16, 1, 0, 3], P), ([17, 32], P), ([64, 33], P), ([70], P)]
)
def test_triton_one_tile(
    lengths: list[int], dropout_p: float, monkeypatch: pytest.MonkeyPatch, poisoned_empty: None
) -> None:
    """Whole sequences in a tile of 16, 32, 64 or 128."""
    kernels = importlib.import_module("fastseq.kernels.attention_common")
    for table in (kernels.CONFIGS, kernels.WITHOUT_DROPOUT):
        for key, config in table.items():
            monkeypatch.setitem(table, key, config._replace(one_tile_forward=128, one_tile_backward=128))
    check_triton(causal_attention, lengths, 24, dropout_p)


@needs_triton
@pytest.mark.parametrize(("tile", "dropout_p"), [((16, 32), P), ((32, 16), P), ((16, 16), P), ((16, 16), 0.0)])
@pytest.mark.parametrize("lengths", [[3, 0, 33], [0, 16, 1, 17]], ids=str)
def test_triton_blocks(
    lengths: list[int],
    dropout_p: float,
    tile: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    poisoned_empty: None,
) -> None:
    """Small blocks, so that these lengths cross their edges: more queries than keys, fewer, as many."""
    kernels = importlib.import_module("fastseq.kernels.attention_common")
    small = kernels.Config(0, 0, 8, *(kernels.Blocks(*tile, 4, 1),) * 3)
    for table in (kernels.CONFIGS, kernels.WITHOUT_DROPOUT):
        for key in table:
            monkeypatch.setitem(table, key, small)
    check_triton(causal_attention, lengths, 20, dropout_p)


@needs_triton
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("width", "longest", "dropout_p"),
    [(1, 5, P), (8, 40, P), (32, 130, P), (60, 66, P), (128, 36, P), (32, 130, 0.0), (128, 36, 0.0)],
)
def test_triton_configurations(
    op: Callable[..., Tensor], width: int, longest: int, dropout_p: float, poisoned_empty: None
) -> None:
    """Every head dim as it is launched."""
    check_triton(op, [2, 0, longest], width, dropout_p)


@needs_triton
@pytest.mark.parametrize(("lengths", "dropout_p"), [([9], 0.0), ([0, 16, 1, 0, 3], P), ([64, 65, 5], P)])
def test_triton_last_query(lengths: list[int], dropout_p: float, poisoned_empty: None) -> None:
    check_triton(last_query_attention, lengths, 24, dropout_p)


@needs_triton
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("longest", [30, 68])
def test_triton_half_types(op: Callable[..., Tensor], dtype: torch.dtype, longest: int, poisoned_empty: None) -> None:
    check_triton(op, [0, longest, 7], 24, P, dtype)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=6), st.sampled_from([1, 5, 16, 33]), st.integers(0, 2**30))
def test_any_offsets(lengths: list[int], width: int, seed: int) -> None:
    for op in OPS:
        qkv, grad = inputs(op, lengths, width, seed=seed)
        for result, best in zip(run(op, qkv, grad, lengths), reference(op, qkv, grad, lengths), strict=True):
            torch.testing.assert_close(result, best, rtol=1e-12, atol=1e-13)


def test_a_long_sequence() -> None:
    lengths = [700]
    qkv, grad = inputs(causal_attention, lengths, 16, torch.float32)
    exact = reference(causal_attention, in_float64(qkv), grad.double(), lengths)
    pytorch = reference(causal_attention, qkv, grad, lengths)
    for i, result in enumerate(run(causal_attention, qkv, grad, lengths)):
        assert_as_accurate(result, pytorch[i], exact[i], 3 if i else 2, NAMES[i])


def test_last_query_is_the_last_row_of_the_full_pass() -> None:
    lengths = [n for n in LENGTHS if n]
    offsets = offsets_of(lengths)
    (q, k, v), _ = inputs(causal_attention, lengths, 32)
    last = (offsets[1:] - 1).long()
    options: dict[str, Any] = dict(max_len=200, dropout_p=P, rng=RNG, site=SITE)
    full = causal_attention(q, k, v, offsets, **options)
    torch.testing.assert_close(
        last_query_attention(q[last], k, v, offsets, **options), full[last], rtol=1e-13, atol=1e-14
    )


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [(torch.float32, "cpu"), (torch.float64, "cpu"), pytest.param(torch.float32, "triton", marks=needs_triton)],
)
def test_dropout_mask_is_the_reference_stream(dtype: torch.dtype, backend: str) -> None:
    """Equal scores and one-hot values turn the output into the mask itself."""
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    lengths = [0, 5, 128, 17, 64]
    offsets = offsets_of(lengths)
    total = int(offsets[-1])
    position = torch.cat([torch.arange(n) for n in lengths])
    v = torch.eye(128, dtype=dtype)[position].unsqueeze(1).expand(-1, HEADS, -1)
    k = torch.zeros(total, HEADS, 128, dtype=dtype)
    heads = torch.arange(HEADS)
    keep = keep_mask(torch.arange(total).unsqueeze(1).expand(-1, HEADS), 128, P, RNG, SITE | heads << 16)
    keep &= (torch.arange(128) <= position.unsqueeze(1)).unsqueeze(1)
    options: dict[str, Any] = dict(max_len=128, dropout_p=P, rng=RNG.to(device), site=SITE)
    k, v, offsets = k.to(device), v.to(device), offsets.to(device)
    with set_backend(backend):
        full = causal_attention(k, k, v, offsets, **options).cpu()
        last = last_query_attention(torch.zeros(5, HEADS, 128, dtype=dtype, device=device), k, v, offsets, **options)
    assert torch.equal(full != 0, keep)
    expected = keep / (position + 1).to(dtype)[:, None, None] / (1 - P)
    torch.testing.assert_close(full, expected.to(dtype))
    last, offsets = last.cpu(), offsets.cpu()
    assert torch.equal(last[1:] != 0, keep[(offsets[2:] - 1).long()])
    assert not last[0].any()


@pytest.mark.parametrize("op", OPS)
def test_results_do_not_depend_on_threads(op: Callable[..., Tensor]) -> None:
    qkv, grad = inputs(op, LENGTHS, 32, torch.float32)
    check_same_on_threads(lambda: run(op, qkv, grad, LENGTHS))


def test_slices_of_a_joint_projection_are_read_in_place() -> None:
    offsets = offsets_of(LENGTHS)
    q, k, v = torch.randn(int(offsets[-1]), 3, HEADS, 24).unbind(1)
    options: dict[str, Any] = dict(max_len=200, dropout_p=P, rng=RNG, site=SITE)
    slices = causal_attention(q, k, v, offsets, **options)
    copies = causal_attention(q.contiguous(), k.contiguous(), v.contiguous(), offsets, **options)
    assert torch.equal(slices, copies)
    scattered = q.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(causal_attention(scattered, k, v, offsets, **options), copies)


def test_causal_and_sequences_apart() -> None:
    """A row does not change with what comes after it, nor with another sequence."""
    lengths = [30, 20]
    (q, k, v), _ = inputs(causal_attention, lengths, 32, torch.float32)
    options: dict[str, Any] = dict(max_len=30, dropout_p=P, rng=RNG, site=SITE)
    before = causal_attention(q, k, v, offsets_of(lengths), **options)
    changed = torch.ones(50, 1, 1)
    changed[21:30] = -3.0
    after = causal_attention(q * changed, k * changed, v * changed, offsets_of(lengths), **options)
    same = changed[:, 0, 0] == 1
    assert torch.equal(before[same], after[same])
    assert (before[~same] != after[~same]).any(dim=(1, 2)).all()


def test_large_scores_and_nan() -> None:
    lengths = [50, 50]
    qkv, grad = inputs(causal_attention, lengths, 32)
    large = [x.detach().mul(s).requires_grad_() for x, s in zip(qkv, (100.0, 100.0, 1.0), strict=True)]
    results, exact = run(causal_attention, large, grad, lengths), reference(causal_attention, large, grad, lengths)
    for result, best in zip(results, exact, strict=True):
        torch.testing.assert_close(result, best, rtol=1e-8, atol=1e-8)
    q, k, v = (x.detach().clone() for x in qkv)
    k[10, 1] = float("nan")
    out = causal_attention(q, k, v, offsets_of(lengths), max_len=50)
    assert out[10:50, 1].isnan().all()
    assert out[50:].isfinite().all() and out[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_nothing_to_attend_to(
    op: Callable[..., Tensor], lengths: list[int], backend: str, poisoned_empty: None
) -> None:
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    qkv, grad = inputs(op, lengths, 24, torch.float32)
    qkv = [x.detach().to(device).requires_grad_() for x in qkv]
    with set_backend(backend):
        results = run(op, qkv, grad.to(device), lengths)
    for result, x in zip(results, [qkv[0], *qkv], strict=True):
        assert result.shape == x.shape and not result.any()


@pytest.mark.parametrize("op", ["causal_attention", "last_query_attention"])
def test_lse_means_the_same_everywhere(op: str) -> None:
    function = getattr(torch.ops.fastseq, op)
    qkv, _ = inputs(globals()[op], LENGTHS, 24)
    arguments = (*(x.detach() for x in qkv), offsets_of(LENGTHS), 200, P, RNG, SITE, 0.25)
    lse = function(*arguments)[1]
    with set_backend("reference"):
        torch.testing.assert_close(lse, function(*arguments)[1], rtol=1e-13, atol=1e-13)


def test_scale_is_the_inverse_root_of_the_head_dim() -> None:
    qkv, grad = inputs(causal_attention, [40], 16)
    named = run(causal_attention, qkv, grad, [40], scale=0.25)
    assert all(torch.equal(a, b) for a, b in zip(named, run(causal_attention, qkv, grad, [40]), strict=True))
    other = run(causal_attention, qkv, grad, [40], scale=0.7)
    for a, b in zip(other, reference(causal_attention, qkv, grad, [40], scale=0.7), strict=True):
        assert relative_error(a, b) < 1e-14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(offsets=torch.tensor([1, 4, 6], dtype=torch.int32)), "offsets must start at 0"),
        (dict(offsets=torch.tensor([0, 4, 3], dtype=torch.int32)), "offsets decreases at index 2: 4 then 3"),
        (dict(offsets=torch.tensor([0, 4, 5], dtype=torch.int32)), "offsets ends at 5"),
        (dict(offsets=torch.tensor([0, 4, 6])), "offsets is torch.int64"),
        (dict(max_len=3), "sequence 0 has 4 rows, more than max_len, 3"),
        (dict(dropout_p=1.0), "dropout_p is 1.0"),
        (dict(dropout_p=0.5), "rng is None"),
        (dict(site=0x8000), "site is 32768"),
        (dict(k=torch.zeros(6, 2, 16)), r"q is \[6, 2, 8\], k is \[6, 2, 16\]"),
        (dict(q=torch.zeros(6, 2, 8).half()), "k is torch.float32 and q is torch.float16"),
        (dict(q=torch.zeros(5, 2, 8)), "q has 5 rows and k has 6"),
        (dict(q=torch.zeros(6, 16)), r"expected \[rows, heads, head dim\]"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {name: torch.zeros(6, 2, 8) for name in "qkv"}
    arguments |= dict(offsets=torch.tensor([0, 4, 6], dtype=torch.int32), max_len=4)
    with pytest.raises(ValueError, match=message):
        causal_attention(**(arguments | change))


def test_head_dim_beyond_128() -> None:
    x = torch.zeros(3, 1, 129)
    with pytest.raises(ValueError, match="head dim is 129, expected 1 to 128"):
        causal_attention(x, x, x, offsets_of([3]), max_len=3)


def test_last_query_wants_one_row_per_sequence() -> None:
    x = torch.zeros(3, 1, 8)
    with pytest.raises(ValueError, match="q has 3 rows, expected one for each of 2 sequences"):
        last_query_attention(x, x, x, offsets_of([1, 2]), max_len=2)


@pytest.mark.parametrize("op", OPS)
def test_compiles_once_for_every_length(op: Callable[..., Tensor]) -> None:
    torch._dynamo.reset()
    compilations = 0

    def backend(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Any:
        nonlocal compilations
        compilations += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    compiled = torch.compile(op, fullgraph=True, backend=backend)
    for lengths in ([5, 9], [7, 12, 3], [8, 30, 2, 6], [1, 44, 3, 9, 2]):
        qkv, grad = inputs(op, lengths, 8)
        for a, b in zip(run(compiled, qkv, grad, lengths), run(op, qkv, grad, lengths), strict=True):
            assert torch.equal(a, b)
    assert compilations <= 2  # one for the first shapes, one for all others
