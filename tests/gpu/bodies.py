"""What is asked of every op on a GPU, as functions of a case: without one they run on CPU tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.ops.case import Case
from benchmarks.ops.check import Prepared, products, step

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


def cuda_graph(call: Callable[[], list[Tensor]]) -> tuple[Callable[[], Any], list[Tensor]]:
    """A CUDA graph of ``call``, after warming up on a stream of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return graph.replay, outputs


def called_again(call: Callable[[], list[Tensor]]) -> tuple[Callable[[], Any], list[Tensor]]:
    """Where there are no graphs: the call itself, its results written where the first ones were."""
    outputs = [x.detach() for x in call()]

    def replay() -> None:
        for x, y in zip(outputs, call(), strict=True):
            x.copy_(y.detach())

    return replay, outputs
