"""Every op on the GPU, in every type that it takes; without one in tiny sizes in C++ and in Triton's interpreter.

benchmarks/ops/check.py compares the results with the reference. The last three tests see that a fault would be found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.ops.case import BFLOAT16, FLOAT16, FLOAT32, INT64, TF32, Case
from benchmarks.ops.check import Mismatch, Prepared, products, step
from benchmarks.ops.suite import FILES, specs, tiny
from benchmarks.ops.timing import cuda_graph
from fastseq.data.synthetic import make_demo
from fastseq.models import MODELS
from fastseq.ops import dropout, make_rng, set_backend
from fastseq.training import Trainer, TrainingOptions
from fastseq.training.throughput import everything, reference_params
from tests.ops.backends import needs_triton

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
ONE_TYPE = {"negatives": [INT64], "windows": [INT64], "adam_rows": [FLOAT32]}
CHOICES = [
    (file, dtype)
    for file in FILES
    if file != "linear" or not GPU  # PyTorch's own on a GPU
    for dtype in ONE_TYPE.get(file, [FLOAT32, TF32, BFLOAT16, FLOAT16] if GPU else [FLOAT32])
    if dtype != TF32 or any(case.products for case in tiny(torch.device("meta"), [file]))
]
each = pytest.mark.parametrize(("file", "dtype"), CHOICES)


# Takes a call and the tensors it reads; gives what runs it again, and the tensors it writes each time.
Recorder = Callable[[Callable[[], list[Tensor]]], tuple[Callable[[], Any], list[Tensor]]]


def bits(x: Tensor) -> Tensor:
    return x.detach().reshape(-1).contiguous().view(torch.uint8)


def check_same_bits(case: Case, dtype: str, repeats: int) -> None:
    """Forward and backward give the same bits every time: no race, no order that depends on the schedule."""
    prepared = Prepared(case, "fastseq", dtype)
    first = [bits(x) for x in prepared.once()]
    differing = torch.zeros(len(first), dtype=torch.int64, device=first[0].device)
    for _ in range(repeats):
        for index, x in enumerate(prepared.once()):
            differing[index] += (bits(x) != first[index]).any()  # read once, at the end
    counts = differing.tolist()
    assert not any(counts), f"{case.op} {case.shape} {dtype}: result k differed in {counts} of {repeats} repeats"


def check_replay(case: Case, dtype: str, record: Recorder) -> None:
    """A recorded training step, run again on other numbers in the same tensors, gives eager's bits."""
    prepared = Prepared(case, "fastseq", dtype)
    static = [x.detach().clone() for x in prepared.leaves]
    for x in static:
        x.requires_grad_(prepared.upstream is not None and x.is_floating_point())

    def call() -> list[Tensor]:
        return step(prepared.function, case.dropout_p, static, prepared.upstream)

    with products(dtype):
        replay, outputs = record(call)
    for trial in range(3):
        fresh = [x.roll(trial + 1, 0) if x.is_floating_point() else x for x in prepared.leaves]
        with torch.no_grad():
            for x, y in zip(static, fresh, strict=True):
                x.copy_(y)
        with products(dtype):
            replay()
        for index, (x, y) in enumerate(zip(outputs, prepared.once(leaves=fresh), strict=True)):
            assert torch.equal(bits(x), bits(y)), f"{case.op} {case.shape} {dtype}: replay changes result {index}"


def called_again(call: Callable[[], list[Tensor]]) -> tuple[Callable[[], Any], list[Tensor]]:
    """Where there are no graphs: the call itself, its results written where the first ones were."""
    outputs = [x.detach() for x in call()]

    def replay() -> None:
        for x, y in zip(outputs, call(), strict=True):
            x.copy_(y.detach())

    return replay, outputs


replayed = cuda_graph if GPU else called_again


def cases(file: str, dtype: str) -> Iterator[Case]:
    """The tiny cases of a file and, on a GPU, the first of every op in a reference configuration's size."""
    yield from (c for c in tiny(DEVICE, [file]) if dtype != TF32 or c.products)
    done: set[str] = set()
    for spec in specs("cuda", [file]) if GPU else []:
        if spec.op not in done and (dtype != TF32 or TF32 in spec.dtypes):
            done.add(spec.op)
            yield spec.build(DEVICE)


@each
def test_equals_the_reference(file: str, dtype: str) -> None:
    for case in cases(file, dtype):
        Prepared(case, "fastseq", dtype).check()


@each
def test_same_bits(file: str, dtype: str) -> None:
    for case in cases(file, dtype):
        check_same_bits(case, dtype, 250 if GPU else 2)


@each
def test_cuda_graph(file: str, dtype: str) -> None:
    for case in cases(file, dtype):
        check_replay(case, dtype, replayed)


def test_a_replayed_graph_draws_by_its_rng() -> None:
    """Seed and step are read on the device: the same graph drops other elements at the next step."""
    x, rng = torch.ones(64, 128, device=DEVICE), make_rng(3, 0, DEVICE)
    replay, (out,) = replayed(lambda: [dropout(x, 0.5, rng)])
    masks = []
    for number in range(3):
        rng.copy_(make_rng(3, number))
        replay()
        with set_backend("reference"):
            assert torch.equal(out, dropout(x, 0.5, rng))
        masks.append(out.clone())
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


@pytest.mark.skipif(not GPU, reason="tests/ops/test_every_op.py compiles the same for the CPU")
def test_inductor_compiles_a_training_step() -> None:
    """SASRec's loss and gradients, its own and inductor's kernels in one graph, equal eager's."""
    data = make_demo(n_users=20)
    model = MODELS["SASRec"](reference_params("SASRec", 8), {"n_users": data.n_users, "n_items": data.n_items})
    trainer = Trainer(model.to(DEVICE), everything(data), TrainingOptions(epochs=1, validation_metric=None))
    batch = next(trainer.loader.batches(0)).to(DEVICE)
    results = []
    for loss in (model.loss, torch.compile(model.loss, fullgraph=True, backend="inductor")):
        model.zero_grad()
        model.rng.copy_(make_rng(3))
        value = loss(batch)
        value.backward()
        results.append([value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


@needs_triton
@pytest.mark.skipif(GPU, reason="with a GPU nothing is interpreted")
@each
def test_interpreted(file: str, dtype: str) -> None:
    with set_backend("triton"):
        for case in tiny(DEVICE, [file])[:2]:
            Prepared(case, "fastseq", dtype, backend="triton").check()


def small(function: object) -> Case:
    """A case whose op is ``function``, not ours."""
    return Case("small", "[4]", {"fastseq": function}, [torch.arange(4.0)], torch.ones(4))  # type: ignore[dict-item]


def test_other_bits_are_found() -> None:
    with pytest.raises(AssertionError, match=r"result k differed in \[3, 0\] of 3 repeats"):
        check_same_bits(small(lambda p, x: x + torch.rand(4)), FLOAT32, repeats=3)


def test_a_replay_that_is_stale_is_found() -> None:
    def frozen(call: object) -> tuple[object, list[Tensor]]:
        return lambda: None, [x.detach() for x in call()]  # type: ignore[operator]

    check_replay(small(lambda p, x: x * x), FLOAT32, called_again)
    with pytest.raises(AssertionError, match="replay changes result 0"):
        check_replay(small(lambda p, x: x * x), FLOAT32, frozen)  # type: ignore[arg-type]


def test_another_mask_is_found() -> None:
    (case,) = tiny(torch.device("cpu"), ["dropout"])
    with pytest.raises(Mismatch, match=r"served by .*cpu.*expected triton"):
        Prepared(case, "fastseq", FLOAT32, backend="triton").check()
    wrong, rng = Prepared(case, "fastseq", FLOAT32), make_rng(9, 9)
    wrong.function = lambda p, x: dropout(x, p, rng)
    with pytest.raises(Mismatch, match="result 0 is off"):
        wrong.check()
