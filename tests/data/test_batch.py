from __future__ import annotations

import torch

from fastseq.data.batch import JaggedBatch


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
