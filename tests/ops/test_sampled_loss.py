"""ops/sampled_loss.py: every implementation against autograd through the plain formulas, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fastseq import ops
from fastseq.ops.sampled_loss import IGNORED, LOSSES
from tests.ops.backends import DEVICE, cast, check_same_on_threads, moved, needs_triton
from tests.ops.compare import assert_accurate, relative_error

FAST = ["cpu", pytest.param("triton", marks=needs_triton)]
NAMES = ("loss", "grad h", "grad items")


def inputs(
    rows: int,
    count: int,
    width: int,
    items: int,
    *,
    shared: bool,
    dtype: torch.dtype = torch.float32,
    spread: float = 1,
) -> dict[str, Tensor]:
    """Few items, so that ids repeat and hits are common; ``spread`` scales the scores."""
    generator = torch.Generator().manual_seed(rows + count + width)
    shape = (count,) if shared else (rows, count)
    probability = torch.rand(items + 1, generator=generator, dtype=torch.float64) + 0.1
    negatives = torch.randint(0, items + 1, shape, generator=generator)
    return {
        "h": (spread * torch.randn(rows, width, generator=generator, dtype=torch.float64)).to(dtype),
        "item_weight": torch.randn(items + 1, width, generator=generator, dtype=torch.float64).to(dtype),
        "targets": torch.randint(0, items + 1, (rows,), generator=generator),
        "negatives": negatives,
        "log_q": (probability / probability.sum()).log()[negatives].to(dtype),
        "grad": torch.randn(rows, generator=generator, dtype=torch.float64).to(dtype),
    }


def options(case: dict[str, Tensor], loss: str) -> dict[str, Any]:
    return {"loss": loss, "log_q": case["log_q"] if loss == "sampled_softmax" else None, "beta": 0.3}


def softplus(x: Tensor) -> Tensor:
    """log(exp(x) + 1) without torch's cut at 20, which is wrong in the ninth digit."""
    return torch.logaddexp(x, torch.zeros_like(x))


def served_loss(case: dict[str, Tensor], loss: str, backend: str, padding_idx: int | None = None) -> list[Tensor]:
    """``fastseq_loss`` by ``backend``, on the CPU."""
    with ops.set_backend(backend), ops.record_served() as calls:
        results = fastseq_loss(moved(case, backend), loss, padding_idx)
    assert calls == [("sampled_loss", backend), ("sampled_loss_backward", backend)]
    return [x.cpu() for x in results]


def fastseq_loss(case: dict[str, Tensor], loss: str, padding_idx: int | None = None) -> list[Tensor]:
    """Losses of all rows, and the gradients of h and item_weight for ``case['grad']``."""
    h, table = (case[name].clone().requires_grad_() for name in ("h", "item_weight"))
    rows = ops.sampled_loss(
        h, table, case["targets"], case["negatives"], reduction="none", padding_idx=padding_idx, **options(case, loss)
    )
    return [rows.detach(), *torch.autograd.grad(rows, [h, table], case["grad"].to(rows.dtype))]


def plain_loss(case: dict[str, Tensor], loss: str, dtype: torch.dtype, padding_idx: int | None = None) -> list[Tensor]:
    """Row by row, as docs/architecture.md words it: masked negatives are left out, not weighted by zero."""
    h, table = (case[name].to(dtype).clone().requires_grad_() for name in ("h", "item_weight"))
    losses = []
    for i, target in enumerate(case["targets"].tolist()):
        negatives = case["negatives"] if case["negatives"].dim() == 1 else case["negatives"][i]
        log_q = case["log_q"] if case["log_q"].dim() == 1 else case["log_q"][i]
        kept = negatives != target
        positive, scores, count = h[i] @ table[target], table[negatives[kept]] @ h[i], int(kept.sum())
        if loss == "bpr":
            losses.append(softplus(scores - positive).mean() if count else positive * 0)
        elif loss == "sampled_softmax":
            logits = scores - log_q[kept].to(dtype) - math.log(max(count, 1))
            losses.append(F.cross_entropy(torch.cat((positive[None], logits)), torch.tensor(0)))
        else:
            assert loss in ("bce", "gbce")
            weight = 0.3 if loss == "gbce" else 1.0
            losses.append((weight * softplus(-positive) + softplus(scores).sum()) / (count + 1))
    rows = torch.stack(losses) if losses else (h * 0).sum(1)
    grads = list(torch.autograd.grad(rows, [h, table], case["grad"].to(dtype), materialize_grads=True))
    if padding_idx is not None:
        grads[1][padding_idx] = 0
    return [rows.detach(), *grads]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "count", "width", "items"), [(1, 1, 1, 2), (37, 1, 24, 9), (33, 5, 7, 12), (65, 67, 60, 50)]
)
def test_equals_the_plain_formula(
    backend: str, shared: bool, loss: str, dtype: torch.dtype, rows: int, count: int, width: int, items: int,
    poisoned_empty: None,
) -> None:  # fmt: skip
    case = inputs(rows, count, width, items, shared=shared, dtype=dtype)
    results = served_loss(case, loss, backend, padding_idx=items)
    same = plain_loss(case, loss, dtype, padding_idx=items)
    exact = plain_loss(case, loss, torch.float64, padding_idx=items)
    assert_accurate(NAMES, results, same, exact)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(0, 12), count=st.integers(0, 9), width=st.integers(1, 20), items=st.integers(1, 6),
    loss=st.sampled_from(LOSSES), shared=st.booleans(),
)  # fmt: skip
def test_any_shape(rows: int, count: int, width: int, items: int, loss: str, shared: bool) -> None:
    """One item and no negatives included, where every negative may be a hit."""
    case = inputs(rows, count, width, items, shared=shared, dtype=torch.float64)
    for result, reference in zip(fastseq_loss(case, loss), plain_loss(case, loss, torch.float64), strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shared", [False, True])
def test_all_negatives_hit(backend: str, loss: str, shared: bool) -> None:
    case = inputs(1, 3, 4, 5, shared=shared)
    case["negatives"][:] = case["targets"]
    rows, grad_h, _ = served_loss(case, loss, backend)
    positive = (case["h"] * case["item_weight"][case["targets"]]).sum(1)
    weight = {"bce": 1.0, "gbce": 0.3}.get(loss, 0.0)
    torch.testing.assert_close(rows, weight * softplus(-positive))
    assert grad_h.any() == (weight > 0)


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shared", [False, True])
def test_ignored_rows_leave_no_trace(loss: str, shared: bool, backend: str, poisoned_empty: None) -> None:
    """Their negatives may be no ids at all; the others come out as without them."""
    case = inputs(9, 5, 12, 7, shared=shared)
    keep = torch.tensor([0, 2, 3, 5, 8])
    rest = torch.tensor([1, 4, 6, 7])
    alone = {name: x if x.shape[0] != 9 else x[keep] for name, x in case.items()}
    case["targets"][rest] = IGNORED
    if not shared:
        case["negatives"][rest] = -1
    with ops.check_data(True):
        rows, grad_h, grad_items = served_loss(case, loss, backend, padding_idx=7)
    for name, result, expected in zip(NAMES, (rows[keep], grad_h[keep], grad_items),
                                      served_loss(alone, loss, backend, padding_idx=7), strict=True):  # fmt: skip
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")
    assert not rows[rest].any() and not grad_h[rest].any()
    with ops.set_backend(backend):
        settings = options(case, loss)
        outputs = torch.ops.fastseq.sampled_loss(
            *(case[n] for n in ("h", "item_weight", "targets", "negatives")), loss, settings["log_q"], 0.3, 7, 1.0
        )
    assert not any(x[rest].any() for x in outputs)
    mean = ops.sampled_loss(*(case[n] for n in ("h", "item_weight", "targets", "negatives")), **options(case, loss))
    torch.testing.assert_close(mean, rows.sum() / len(keep))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shared", [False, True])
def test_huge_scores(loss: str, shared: bool, backend: str) -> None:
    """Scores of ±1e4, whose own rounding in float32 is 1e-3."""
    case = inputs(50 if backend == "cpu" else 20, 4, 16, 20, shared=shared, spread=3000)
    exact = plain_loss(case, loss, torch.float64)
    assert exact[0].max() > 5000
    for x, best, allowed in zip(served_loss(case, loss, backend), exact, (1e-6, 1e-3, 1e-3), strict=True):
        assert relative_error(x, best) < allowed


@pytest.mark.parametrize("backend", ["reference", "cpu", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("loss", LOSSES)
def test_scale(loss: str, backend: str) -> None:
    """Multiplies losses and derivatives, and by them the gradients."""
    h, table, targets = torch.randn(3, 5), torch.randn(9, 5), torch.tensor([1, 2, 3])
    log_q = torch.randn(3, 4) if loss == "sampled_softmax" else None
    arguments = (targets, torch.randint(9, (3, 4)), loss, log_q, 1.5, None)
    results = []
    for scale in (1.0, 0.25):
        leaves = [x.to(DEVICE if backend == "triton" else "cpu").requires_grad_() for x in (h.clone(), table.clone())]
        others = [x.to(leaves[0].device) if isinstance(x, Tensor) else x for x in arguments]
        with ops.set_backend(backend):
            rows, d_h, d_scores = torch.ops.fastseq.sampled_loss(*leaves, *others, scale)
            results.append([rows, d_h, d_scores, *torch.autograd.grad(rows.sum(), leaves)])
    for whole, part in zip(*results, strict=True):
        torch.testing.assert_close(part, whole / 4)


def test_reductions() -> None:
    case = inputs(9, 2, 8, 30, shared=False)
    arguments = (case["h"], case["item_weight"], case["targets"], case["negatives"])
    rows = ops.sampled_loss(*arguments, reduction="none")
    assert rows.shape == (9,)
    torch.testing.assert_close(ops.sampled_loss(*arguments), rows.mean())
    torch.testing.assert_close(ops.sampled_loss(*arguments, reduction="sum"), rows.sum())
    torch.testing.assert_close(ops.sampled_loss(*arguments, reduction="sum", divisor=4), rows.sum() / 4)
    with pytest.raises(ValueError, match="divisor is 4 and reduction is 'mean': it divides a sum"):
        ops.sampled_loss(*arguments, divisor=4)
    empty = inputs(0, 2, 8, 30, shared=False)
    none = ops.sampled_loss(empty["h"], empty["item_weight"], empty["targets"], empty["negatives"])
    assert none.item() == 0.0


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("loss", ["bpr", "sampled_softmax"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype: torch.dtype, shared: bool, loss: str, backend: str) -> None:
    half = cast(inputs(9, 2, 8, 30, shared=shared), dtype)
    results, exact = served_loss(half, loss, backend), plain_loss(half, loss, torch.float64)
    assert [x.dtype for x in results] == [torch.float32, dtype, dtype]
    assert all(relative_error(x, best) < 2 * torch.finfo(x.dtype).eps for x, best in zip(results, exact, strict=True))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_same_bits_for_any_number_of_threads(loss: str, shared: bool) -> None:
    case = inputs(257, 61, 29, 40, shared=shared)
    check_same_on_threads(lambda: fastseq_loss(case, loss))


def test_gbce_beta() -> None:
    """beta is 1 (plain BCE) at t = 0 and the sampling rate at t = 1."""
    assert ops.gbce_beta(10, 101, 0.0) == pytest.approx(1.0)
    assert ops.gbce_beta(10, 101, 1.0) == pytest.approx(0.1)
    assert ops.gbce_beta(10, 101, 0.75) == pytest.approx(0.1 * (0.75 * (1 - 10) + 10))
    with pytest.raises(ValueError, match="t is 2"):
        ops.gbce_beta(10, 101, 2)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shared", [False, True])
def test_h_decides_the_type(kind: torch.dtype, shared: bool) -> None:
    """A table of another type is converted, as the reference does, and gets a gradient of its own type."""
    case = inputs(9, 3, 8, 12, shared=shared)
    case["h"] = case["h"].to(kind)
    results = fastseq_loss(case, "sampled_softmax")
    with ops.set_backend("reference"):
        expected = fastseq_loss(case, "sampled_softmax")
    assert [r.dtype for r in results] == [torch.promote_types(kind, torch.float32), kind, torch.float32]
    for result, other in zip(results, expected, strict=True):
        torch.testing.assert_close(result, other, rtol=0.01 if result.dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_triton(loss: str, shared: bool, poisoned_empty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 256 table elements and of 8 shared scores: less, as much and more than one."""
    from fastseq.kernels import sampled_loss

    monkeypatch.setattr(sampled_loss, "TILE", 256)
    monkeypatch.setattr(sampled_loss, "SHARED_TILE", 8)
    for rows, count, width, items in ((1, 1, 1, 2), (7, 8, 24, 9), (3, 19, 60, 12), (5, 3, 130, 4), (2, 0, 4, 5)):
        case = inputs(rows, count, width, items, shared=shared)
        results = served_loss(case, loss, "triton", padding_idx=items)
        pytorch = plain_loss(case, loss, torch.float32, padding_idx=items)
        exact = plain_loss(case, loss, torch.float64, padding_idx=items)
        assert_accurate((f"{name} of {rows}, {count}, {width}" for name in NAMES), results, pytorch, exact)
    again = served_loss(case, loss, "triton", padding_idx=items)
    assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
    assert [x.shape[0] for x in served_loss(inputs(0, 3, 4, 5, shared=shared), loss, "triton")] == [0, 0, 6]


@needs_triton
@pytest.mark.parametrize("shared", [False, True])
def test_triton_mean(shared: bool) -> None:
    case = inputs(9, 2, 8, 30, shared=shared)
    tensors = moved(case, "triton")
    gradients = []
    for backend in ("triton", "reference"):
        h = tensors["h"].clone().requires_grad_()
        with ops.set_backend(backend):
            ops.sampled_loss(h, tensors["item_weight"], tensors["targets"], tensors["negatives"]).backward()
        gradients.append(h.grad)
    torch.testing.assert_close(*gradients)


@needs_triton
@pytest.mark.parametrize("name", ["targets", "negatives"])
def test_triton_makes_unknown_ids_nan(name: str) -> None:
    """Nothing waits for the device to name them; but they read no foreign memory and do not pass for a result."""
    for bad in (-1, 31):
        case = inputs(4, 3, 8, 30, shared=False)
        case[name][2] = bad
        with ops.check_data(False):
            rows, grad_h, _ = served_loss(case, "bce", "triton")
        assert rows.isnan().tolist() == grad_h.isnan().any(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_a_loss_without_a_formula_is_refused(backend: str) -> None:
    """A new name in LOSSES never passes for one of the others."""
    case = moved(inputs(3, 2, 4, 5, shared=False), backend)
    arguments = [case[name] for name in ("h", "item_weight", "targets", "negatives")]
    with ops.set_backend(backend), pytest.raises(Exception, match=r"hinge|this loss has no kernel"):
        torch.ops.fastseq.sampled_loss(*arguments, "hinge", None, 1.0, None, 1.0)
