"""TF32: allowed in training steps alone, and PyTorch's setting is left as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastseq.data.batch import JaggedBatch
from fastseq.training import Trainer, TrainingOptions, steps
from fastseq.training.precision import products

from .tiny import Tiny, make_model, make_split

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = "none"


def setting() -> str:
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision if hasattr(matmul, "fp32_precision") else str(matmul.allow_tf32)


@pytest.mark.parametrize("legacy", ["highest", "high", None])
def test_the_setting_is_restored_and_readable_under_both_names(legacy: str | None) -> None:
    if legacy is not None:
        torch.set_float32_matmul_precision(legacy)
    before, asked = setting(), torch.get_float32_matmul_precision()
    for precision, device in (("fp32", GPU), ("bf16", GPU), ("tf32", torch.device("cpu")), (None, GPU)):
        with products(precision, device):
            assert setting() == before
    with pytest.raises(KeyError), products("tf32", GPU):
        assert setting() in ("tf32", "True")
        raise KeyError
    assert setting() == before and torch.get_float32_matmul_precision() == asked


def test_a_step_is_forward_and_backward_and_a_validation_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[str]] = {"forward": set(), "backward": set(), "validation": set()}

    class Watched(Tiny):
        def encode(self, batch: JaggedBatch) -> Tensor:
            seen["forward" if self.training else "validation"].add(setting())
            h = super().encode(batch)
            if h.requires_grad:
                h.register_hook(lambda grad: seen["backward"].add(setting()))
            return h

    split, exact = make_split(), setting()
    monkeypatch.setattr(steps, "products", lambda precision, device: products(precision, GPU))
    model = Watched({}, {"n_users": split.interactions.n_users, "n_items": split.interactions.n_items})
    with pytest.warns(UserWarning, match="tf32, which only GPUs have: on the CPU it is fp32"):
        Trainer(model, split, TrainingOptions(epochs=1, precision="tf32")).fit()
    assert seen["forward"] == seen["backward"] != {exact} and seen["validation"] == {exact}


def test_on_the_cpu_it_is_fp32_bit_for_bit() -> None:
    losses = []
    for precision in ("fp32", "tf32"):
        options = TrainingOptions(epochs=1, precision=precision, validation_metric=None)  # type: ignore[arg-type]
        losses.append(Trainer(make_model(split := make_split()), split, options).fit().last_loss)
    assert losses[0] == losses[1]
