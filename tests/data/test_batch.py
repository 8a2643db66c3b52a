from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from fastseq.data.batch import JaggedBatch
from fastseq.data.transfer import transferred


def batch() -> JaggedBatch:
    return JaggedBatch(
        items=torch.tensor([3, 1, 2]),
        offsets=torch.tensor([0, 2, 3], dtype=torch.int32),
        users=torch.tensor([0, 4]),
        max_len=2,
        rows=torch.tensor([1, 2]),
        targets=torch.tensor([2, 0]),
        target_sequences=torch.tensor([0, 1]),
        n_targets_global=2,
        last_only=True,
    )


def test_counts_its_targets() -> None:
    assert batch().n_targets == 2


def test_moves_every_tensor_and_keeps_the_rest() -> None:
    original = batch()
    assert original.to("cpu") is original
    moved = original.to("meta")
    tensors = {name for name, value in vars(original).items() if isinstance(value, torch.Tensor)}
    assert tensors == {"items", "offsets", "users", "rows", "targets", "target_sequences"}
    for name, value in vars(original).items():
        if name in tensors:
            assert getattr(moved, name).device.type == "meta"
            assert getattr(moved, name).shape == value.shape
        else:
            assert getattr(moved, name) == value


def test_a_packed_batch_is_one_buffer_of_aligned_pieces() -> None:
    original = replace(batch(), negatives=torch.zeros(2, 0, dtype=torch.int64), log_q=torch.tensor([0.5]))
    buffer = original.pack()
    assert buffer.dtype == torch.uint8 and not buffer.is_pinned()
    packed = original.unpack(buffer)
    for name, value in vars(original).items():
        given = getattr(packed, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(given, value) and given.dtype == value.dtype, name
            assert given.untyped_storage().data_ptr() == buffer.data_ptr() and given.data_ptr() % 16 == 0
        else:
            assert given is value
    pieces = sorted((x.data_ptr(), x.nbytes) for x in vars(packed).values() if isinstance(x, torch.Tensor))
    assert all(start + size <= following for (start, size), (following, _) in pairwise(pieces))


def test_a_gpu_waits_for_each_copy_and_the_host_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order: the copy and its event on the stream of copies; at its use a wait for it, and its memory kept."""
    calls: list[str] = []
    current = ["compute"]

    class Stream:
        def __init__(self, name: Any) -> None:
            self.name = name if isinstance(name, str) else "copies"

        def record_event(self) -> str:
            calls.append(f"event on {self.name}")
            return "event"

        def wait_event(self, event: str) -> None:
            calls.append(f"{self.name} waits")

    @contextlib.contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        current.append(stream.name)
        yield
        current.pop()

    def to(self: JaggedBatch, device: torch.device, non_blocking: bool) -> JaggedBatch:
        calls.append(f"copy on {current[-1]}, non_blocking {non_blocking}")
        return self

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(current[-1]))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: calls.append(f"kept for {stream.name}"))
    monkeypatch.setattr(JaggedBatch, "to", to)
    for _ in transferred(iter([batch(), batch()]), torch.device("cuda", 0), 0):
        assert current == ["compute"]
        assert calls == ["copy on copies, non_blocking True", "event on copies", "compute waits", "kept for compute"]
        calls.clear()
