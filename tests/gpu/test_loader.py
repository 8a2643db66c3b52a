"""Batches on a GPU are those of the CPU, made there or copied. Without a GPU: tests/data/test_resident.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq.data import loader
from fastseq.data.loader import Loader
from fastseq.data.negatives import NegativeSampler
from fastseq.data.synthetic import make_demo

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def batches(device: str, mode: Any, distribution: Any) -> list[dict[str, Any]]:
    data = make_demo()
    sampler = NegativeSampler(data, 3, mode=mode, distribution=distribution, with_log_q=True)
    made = Loader(data, batch_size=512, max_len=20, window_stride=7, l2=True, sampler=sampler, device=device)
    kept = []
    for batch in made.batches(1):
        torch.cuda._sleep(1_000_000)  # the host is ahead: what is used too early, or freed, shows
        batch.target_users = batch.users_of_targets
        kept.append({name: x.clone() if isinstance(x, Tensor) else x for name, x in vars(batch).items()})
    return kept


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
@pytest.mark.parametrize("mode", ["per_target", "shared", "shared_unseen"])
@pytest.mark.parametrize("share", [1.0, 0.0])
def test_batches_are_those_of_the_cpu(
    share: float, mode: str, distribution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "RESIDENT_SHARE", share)
    expected = batches("cpu", mode, distribution)
    for given, wanted in zip(batches("cuda", mode, distribution), expected, strict=True):
        for name, x in wanted.items():
            assert torch.equal(given[name].cpu(), x) if isinstance(x, Tensor) else given[name] == x, name
