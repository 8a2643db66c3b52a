"""Two processes over gloo train and evaluate as one."""

from __future__ import annotations

import json
import multiprocessing
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastseq.errors import ConfigError
from fastseq.training import watch
from fastseq.training.distributed import Ranks
from fastseq.training.loop import Trainer
from fastseq.training.options import TrainingOptions

from .tiny import make_model, make_split
from .worker import PARAMS, UNEVEN, stop_with_others, train_recorded, train_uneven, train_with_others


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.worker"])
    port = free_port()
    processes = [context.Process(target=train_with_others, args=(rank, 2, port, str(two))) for rank in range(2)]
    for process in processes:
        process.start()
    seen, metrics = train_recorded(one)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    ranks = [load_file(two / f"rank{rank}.safetensors") for rank in range(2)]
    parts = [rank["seen"] for rank in ranks]
    assert min(len(part) for part in parts) > 0.3 * len(seen)

    def in_order(x: torch.Tensor) -> list[list[int]]:
        return sorted(x.tolist())

    assert in_order(torch.cat(parts)) == in_order(seen), "each target once, in the same step"
    for name, tensor in load_file(one / "weights.safetensors").items():
        torch.testing.assert_close(load_file(two / "weights.safetensors")[name], tensor, rtol=1e-9, atol=1e-12)
    for rank in ranks:
        assert rank["metrics"].tolist() == pytest.approx(list(metrics.values()), abs=1e-12)
    lines = [
        [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        for folder in (one, two)
    ]
    assert len(lines[0]) == len(lines[1]) == 3
    for a, b in zip(*lines, strict=True):
        assert (a["step"], a["targets"]) == (b["step"], b["targets"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-9)
        assert a["validation"] == pytest.approx(b["validation"], abs=1e-12)


@pytest.mark.slow
def test_uneven_ranks_end_where_one_process_does(tmp_path: Path) -> None:
    """Also one without a window or user, by rows and on whole tables, until patience ends; none sends a table."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.worker"])
    processes = []
    for world_size in (1, 2, 3):
        port, folder = free_port(), tmp_path / str(world_size)
        folder.mkdir()
        processes += [
            context.Process(target=train_uneven, args=(rank, world_size, port, str(folder)))
            for rank in range(world_size)
        ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    early = 0
    for number, (_, n_users, _, updates) in enumerate(UNEVEN):
        one = load_file(tmp_path / f"1/{number}.rank0")
        early += int(one["stopped"][2])
        for world_size in (2, 3):
            ranks = [load_file(tmp_path / f"{world_size}/{number}.rank{rank}") for rank in range(world_size)]
            for key in one.keys() - {"sent"}:
                torch.testing.assert_close(ranks[0][key], one[key], rtol=1e-5, atol=1e-7, msg=f"{number} {key}")
                assert all(torch.equal(rank[key], ranks[0][key]) for rank in ranks), (number, key)
            if updates == "rows" and n_users == 60:
                sent, steps = ranks[0]["sent"].tolist()
                assert 0 < sent / steps < one["item_embedding.weight"].nbytes / 2
    assert 0 < early < len(UNEVEN)


@pytest.mark.slow
def test_a_signal_to_one_stops_both_after_the_same_step(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.worker"])
    port = free_port()
    processes = [context.Process(target=stop_with_others, args=(rank, 2, port, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["interrupted 5"] * 2
    split = make_split()
    assert (
        Trainer(make_model(split, **PARAMS), split, TrainingOptions(epochs=3), tmp_path / "run", resume=True).state.step
        == 5
    )


def test_a_rank_has_its_gpu_before_anything_touches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **options: calls.append((backend, options))
    )
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(watch, "meet", lambda rank, world_size: ("store", None))
    monkeypatch.setattr(watch, "begin", lambda watching: None)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    gpu = torch.device("cuda:1")
    assert Ranks.join(gpu) == Ranks(1, 2)
    group = {"store": "store", "rank": 1, "world_size": 2}
    assert calls == [gpu, ("cpu:gloo,cuda:nccl", {"device_id": gpu, **group})]
    Ranks.join(torch.device("cpu"))
    assert calls[2:] == [("gloo", group)]


def test_an_incomplete_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.join() == Ranks(0, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="RANK, MASTER_ADDR, MASTER_PORT is not; start with torchrun"):
        Ranks.join()
