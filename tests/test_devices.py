"""Devices by name, and what is refused."""

from __future__ import annotations

import pytest
import torch

from fastseq.devices import device_name, find_device
from fastseq.errors import ConfigError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("gpus")
def test_names_where_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [find_device(name) for name in ("auto", "cuda", "cuda:1", torch.device("cuda:1"), "cpu", "cpu:0")] == [
        torch.device(name) for name in ("cuda", "cuda", "cuda:1", "cuda:1", "cpu", "cpu")
    ]
    with pytest.raises(ConfigError, match="--device is 'cuda:2', but the last one here is number 1"):
        find_device("cuda:2", "--device")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device() == find_device("cuda") == torch.device("cuda:1") and find_device("cuda:0").index == 0
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"local rank 2 has no GPU of its own, PyTorch sees 2: .*--nproc-per-node 2"):
        find_device()


def test_names_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device() == find_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device is 'cuda:0', but PyTorch sees no GPU here; use cpu or auto"):
        find_device("cuda:0")
    for name in ("gpu", "meta", "mps", "cpu:1", ""):
        with pytest.raises(ConfigError, match=f"device is '{name}', expected auto, cpu or cuda"):
            find_device(name)


def test_a_device_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_name(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert device_name(torch.device("cuda:1")) == "GPU 1"
