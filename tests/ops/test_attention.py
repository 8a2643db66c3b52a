"""causal_attention and last_query_attention: every implementation against the float64 reference."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastseq.ops import BackendError, _dispatch, causal_attention, last_query_attention, make_rng, set_backend
from fastseq.ops.philox import keep_scale
from fastseq.ops.reference.philox import keep_mask

from .backends import DEVICE, Function, cast, check_cpu, check_threads, check_triton, needs_triton, run
from .compare import relative_error

LENGTHS = [0, 1, 63, 64, 65, 0, 111, 200, 2]
HEADS, SITE, P = 3, 11, 0.3
RNG = make_rng(2**40 + 7, 5)
OPS: list[Callable[..., Tensor]] = [causal_attention, last_query_attention]


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def inputs(
    op: Callable[..., Tensor], lengths: list[int], width: int, *, heads: int = HEADS, seed: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """q, k and v, and a random upstream gradient, float64."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    queries = total if op is causal_attention else len(lengths)
    shapes = [(rows, heads, width) for rows in (queries, total, total, queries)]
    q, k, v, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return {"q": q, "k": k, "v": v}, grad


def over(op: Callable[..., Tensor], lengths: list[int], dropout_p: float = P, **more: Any) -> Function:
    """The op of q, k and v alone."""

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        options = dict(max_len=max(lengths, default=0), dropout_p=dropout_p, rng=RNG.to(q.device), site=SITE, **more)
        return op(q, k, v, offsets_of(lengths).to(q.device), **options)

    return function


def served(op: Callable[..., Tensor]) -> set[str]:
    return {op.__name__, f"{op.__name__}_backward"}


def assert_close(function: Function, values: dict[str, Tensor], grad: Tensor, rtol: float, atol: float) -> None:
    """The CPU path and the reference, element by element."""
    expected = run(function, values, grad, "reference", set())
    for name, x in run(function, values, grad, "cpu", set()).items():
        torch.testing.assert_close(x, expected[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dropout_p", [0.0, P])
@pytest.mark.parametrize("width", [8, 24, 32, 60, 128, 257])
def test_matches_reference(op: Callable[..., Tensor], width: int, dropout_p: float, poisoned_empty: None) -> None:
    for dtype in (torch.float32, torch.float64):
        check_cpu(over(op, LENGTHS, dropout_p), *inputs(op, LENGTHS, width), dtype, served(op), tolerance=5e-15)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(op: Callable[..., Tensor], dtype: torch.dtype) -> None:
    values, grad = inputs(op, LENGTHS, 32)
    values, grad = cast(values, dtype), grad.to(dtype)
    exact = run(over(op, LENGTHS), cast(values, torch.float64), grad, "reference", set())
    for name, x in run(over(op, LENGTHS), values, grad, "cpu", set()).items():
        assert x.dtype == dtype
        assert relative_error(x, exact[name]) < 0.6 * torch.finfo(dtype).eps  # rounded once


def check_kernels(
    op: Callable[..., Tensor], lengths: list[int], width: int, dropout_p: float, dtype: torch.dtype = torch.float32
) -> None:
    check_triton(over(op, lengths, dropout_p), *inputs(op, lengths, width, heads=2), served(op), dtype)


@needs_triton
@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize(("tile", "dropout_p"), [((16, 32), P), ((32, 16), P), ((16, 64), 0.0)])
@pytest.mark.parametrize("lengths", [[3, 0, 33], [2, 1, 0, 4, 3, 1, 70, 5]], ids=str)
def test_triton_tiles(
    lengths: list[int],
    tile: tuple[int, int],
    dropout_p: float,
    one_pass: bool,
    monkeypatch: pytest.MonkeyPatch,
    poisoned_empty: None,
) -> None:
    """Tiles with rows of several sequences, sequences over several tiles; more queries than keys, and fewer."""
    kernels = importlib.import_module("fastseq.kernels.attention_common")
    blocks = kernels.Blocks(*tile, 4, 1)
    for key in kernels.CONFIGS:
        monkeypatch.setitem(kernels.CONFIGS, key, kernels.Config(*(blocks,) * 3, blocks if one_pass else None))
    check_kernels(causal_attention, lengths, 20, dropout_p)


@needs_triton
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.2), (torch.float32, 1e-4)])
def test_triton_low_scores_beside_keys_that_are_none(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch, poisoned_empty: None
) -> None:
    """Powers of -lse are infinite; the last tile has more keys than rows are left."""
    kernels = importlib.import_module("fastseq.kernels.attention_common")
    blocks = kernels.Blocks(16, 32, 1, 1)
    for key in kernels.CONFIGS:
        monkeypatch.setitem(kernels.CONFIGS, key, kernels.Config(*(blocks,) * 4))
    values, grad = inputs(causal_attention, [2, 3], 16, heads=1)
    values["q"][..., 0], values["k"][..., 0] = 24.0, -24.0
    values, grad = cast(values, dtype), grad.to(dtype)
    exact = run(over(causal_attention, [2, 3]), cast(values, torch.float64), grad, "reference", set())
    for name, x in run(over(causal_attention, [2, 3]), values, grad, "triton", set()).items():
        assert relative_error(x, exact[name]) < tolerance, name  # not NaN


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
    check_kernels(op, [2, 0, longest], width, dropout_p)


@needs_triton
@pytest.mark.parametrize("op", OPS)
def test_triton_leaves_wider_heads_to_pytorch(op: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    values, grad = inputs(op, [3, 0, 2], 129)
    with pytest.raises(BackendError, match=r"head dim 129 is over 128, the widest .* use more heads"):
        run(over(op, [3, 0, 2]), values, grad, "triton", set())
    monkeypatch.setenv("FASTSEQ_STRICT", "0")
    monkeypatch.setattr(_dispatch, "_warned", set())
    with pytest.warns(RuntimeWarning, match="falls back to plain PyTorch: head dim 129") as warned:
        results = run(over(op, [3, 0, 2]), values, grad, "triton", set())
    assert len(warned) == 1
    for name, x in run(over(op, [3, 0, 2]), values, grad, "reference", set()).items():
        assert torch.equal(results[name], x)


@needs_triton
@pytest.mark.parametrize(("lengths", "dropout_p"), [([9], 0.0), ([0, 16, 1, 0, 3], P), ([64, 65, 5], P)])
def test_triton_last_query(lengths: list[int], dropout_p: float, poisoned_empty: None) -> None:
    check_kernels(last_query_attention, lengths, 24, dropout_p)


@needs_triton
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("longest", [30, 68])
def test_triton_half_types(op: Callable[..., Tensor], dtype: torch.dtype, longest: int, poisoned_empty: None) -> None:
    check_kernels(op, [0, longest, 7], 24, P, dtype)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=6), st.sampled_from([1, 5, 16, 33]), st.integers(0, 2**30))
def test_any_offsets(lengths: list[int], width: int, seed: int) -> None:
    for op in OPS:
        assert_close(over(op, lengths), *inputs(op, lengths, width, seed=seed), rtol=1e-12, atol=1e-13)


def test_a_long_sequence() -> None:
    values = inputs(causal_attention, [700], 16)
    check_cpu(over(causal_attention, [700]), *values, torch.float32, served(causal_attention))


def test_last_query_is_the_last_row_of_the_full_pass() -> None:
    lengths = [n for n in LENGTHS if n]
    values, _ = inputs(causal_attention, lengths, 32)
    last = (offsets_of(lengths)[1:] - 1).long()
    full = over(causal_attention, lengths)(**values)
    output = over(last_query_attention, lengths)(**values | {"q": values["q"][last]})
    torch.testing.assert_close(output, full[last], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [(torch.float32, "cpu"), (torch.float64, "cpu"), pytest.param(torch.float32, "triton", marks=needs_triton)],
)
def test_dropout_mask_is_the_reference_stream(dtype: torch.dtype, backend: str) -> None:
    """Equal scores and one-hot values turn the output into the mask itself."""
    device = DEVICE if backend == "triton" else "cpu"
    lengths = [0, 5, 128, 17, 64]
    offsets = offsets_of(lengths)
    total = int(offsets[-1])
    position = torch.cat([torch.arange(n) for n in lengths])
    v = torch.eye(128, dtype=dtype)[position].unsqueeze(1).expand(-1, HEADS, -1)
    k = torch.zeros(total, HEADS, 128, dtype=dtype)
    heads = torch.arange(HEADS)
    rows, sites = torch.arange(total).unsqueeze(1).expand(-1, HEADS), SITE | heads << 16
    firsts = offsets[:-1].tolist()
    keep = torch.cat([
        keep_mask(rows[first : first + n], 128, P, RNG, sites, first) for first, n in zip(firsts, lengths, strict=True)
    ])  # fmt: skip
    keep &= (torch.arange(128) <= position.unsqueeze(1)).unsqueeze(1)
    k, v = k.to(device), v.to(device)
    with set_backend(backend):
        full = over(causal_attention, lengths)(k, k, v).cpu()
        last = over(last_query_attention, lengths)(k[:5], k, v).cpu()
    assert torch.equal(full != 0, keep)
    expected = keep / (position + 1).to(dtype)[:, None, None] * keep_scale(P)
    torch.testing.assert_close(full, expected.to(dtype))
    assert torch.equal(last[1:] != 0, keep[(offsets[2:] - 1).long()])
    assert not last[0].any()


@pytest.mark.parametrize("op", OPS)
def test_results_do_not_depend_on_threads(op: Callable[..., Tensor]) -> None:
    values, grad = inputs(op, LENGTHS, 32)
    check_threads(over(op, LENGTHS), cast(values, torch.float32), grad)


def test_slices_of_a_joint_projection_are_read_in_place() -> None:
    q, k, v = torch.randn(sum(LENGTHS), 3, HEADS, 24).unbind(1)
    attend = over(causal_attention, LENGTHS)
    copies = attend(q.contiguous(), k.contiguous(), v.contiguous())
    scattered = q.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(attend(q, k, v), copies) and torch.equal(attend(scattered, k, v), copies)


def test_causal_and_sequences_apart() -> None:
    """A row does not change with what comes after it, nor with another sequence."""
    attend, values = over(causal_attention, [30, 20]), cast(inputs(causal_attention, [30, 20], 32)[0], torch.float32)
    before = attend(**values)
    changed = torch.ones(50, 1, 1)
    changed[21:30] = -3.0
    after = attend(**{name: x * changed for name, x in values.items()})
    same = changed[:, 0, 0] == 1
    assert torch.equal(before[same], after[same])
    assert (before[~same] != after[~same]).any(dim=(1, 2)).all()


def test_large_scores_and_nan() -> None:
    lengths = [50, 50]
    values, grad = inputs(causal_attention, lengths, 32)
    large = values | {name: 100 * values[name] for name in "qk"}
    assert_close(over(causal_attention, lengths), large, grad, rtol=1e-8, atol=1e-8)
    values["k"][10, 1] = float("nan")
    out = over(causal_attention, lengths, 0.0)(**values)
    assert out[10:50, 1].isnan().all()
    assert out[50:].isfinite().all() and out[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_nothing_to_attend_to(
    op: Callable[..., Tensor], lengths: list[int], backend: str, poisoned_empty: None
) -> None:
    values, grad = inputs(op, lengths, 24)
    for name, x in run(over(op, lengths), cast(values, torch.float32), grad, backend, served(op)).items():
        assert x.shape == (grad if name == "output" else values[name[-1]]).shape and not x.any()


@pytest.mark.parametrize("op", ["causal_attention", "last_query_attention"])
def test_lse_means_the_same_everywhere(op: str) -> None:
    function = getattr(torch.ops.fastseq, op)
    values, _ = inputs(globals()[op], LENGTHS, 24)
    arguments = (*values.values(), offsets_of(LENGTHS), 200, P, RNG, SITE, 0.25)
    lse = function(*arguments)[1]
    with set_backend("reference"):
        torch.testing.assert_close(lse, function(*arguments)[1], rtol=1e-13, atol=1e-13)


def test_scale_is_the_inverse_root_of_the_head_dim() -> None:
    values, grad = inputs(causal_attention, [40], 16)
    named = run(over(causal_attention, [40], scale=0.25), values, grad, "cpu", set())
    for name, x in run(over(causal_attention, [40]), values, grad, "cpu", set()).items():
        assert torch.equal(x, named[name])
    check_cpu(over(causal_attention, [40], scale=0.7), values, grad, torch.float64, served(causal_attention))


@pytest.mark.parametrize("op", OPS)
def test_compiles_once_for_every_length(op: Callable[..., Tensor]) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(op, fullgraph=True, backend=counter)
    for lengths in ([5, 9], [7, 12, 3], [8, 30, 2, 6], [1, 44, 3, 9, 2]):
        values, grad = inputs(op, lengths, 8)
        expected = run(over(op, lengths), values, grad, "cpu", set())
        for name, x in run(over(compiled, lengths), values, grad, "cpu", set()).items():
            assert torch.equal(x, expected[name])
    assert counter.frame_count <= 2  # one for the first shapes, one for all others
