"""Of several processes one fails, dies, freezes, never comes or is given something else: the others end and say so."""

from __future__ import annotations

import itertools
import multiprocessing
import re
from pathlib import Path

import pytest
import torch.distributed as dist

from fastseq.errors import ConfigError
from fastseq.training import watch

from .test_ddp import free_port
from .worker import end_badly

HOST = r" on \S+"
# How one ends, which one, and what the others then say; None: nothing, and all come to their end.
CASES = {
    ("raise", 1): f"TrainingError: rank 1{HOST} failed: ValueError: a loss that is none$",
    ("raise", 0): f"TrainingError: rank 0{HOST} failed: ValueError: a loss that is none$",
    ("kill", 1): rf"TrainingError: no sign of life from rank 1{HOST} for \d+ s: dead or frozen$",
    ("kill", 0): f"the store at 127.0.0.1:.*is (gone|out of reach): rank 0{HOST}, its torchrun or its host has ended",
    ("stop", 1): f"fastseq: no sign of life from rank 1{HOST} for 6 s: dead or frozen$",
    ("stop", 0): f"fastseq: .*the store at 127.0.0.1:.*is out of reach: rank 0{HOST}",
    ("late", 1): "TrainingError: 2 of 3 processes came in 12 s, rank 1 did not",
    ("late", 0): "TrainingError: rank [12].*: rank 0 has not come to 127.0.0.1",
    ("differ", 2): f"ConfigError: .*run_dir is None for rank 0{HOST}, rank 1{HOST} and given for rank 2.*"
    f"params.learning_rate is 0.01 for rank 0{HOST}, rank 1{HOST} and 0.02 for rank 2.*"
    "options.progress_every_seconds is 1 for .*and 2 for rank 2.*split.data_hash is ",
    ("work", 1): None,
}


@pytest.mark.slow
def test_what_ends_one_ends_all_with_its_name(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.worker"])
    running = {}
    for how, who in CASES:  # at once, since they wait most of the time
        folder, port = tmp_path / f"{how}{who}", free_port()
        folder.mkdir()
        running[how, who] = [
            context.Process(target=end_badly, args=(rank, 3, port, str(folder), how, who)) for rank in range(3)
        ]
        for process in running[how, who]:
            process.start()
    try:
        for (how, who), expected in CASES.items():
            for rank, process in enumerate(running[how, who]):
                others = rank != who or how == "differ"  # who fails has an error of its own
                if others or how in ("raise", "work"):
                    process.join(60)
                    said = (tmp_path / f"{how}{who}/stderr{rank}").read_text()
                    assert process.exitcode is not None, f"{how} {who}: rank {rank} hangs"
                    assert (process.exitcode == 0) == (expected is None), f"{how} {who}: {said}"
                if others and expected is not None:
                    assert re.search(expected, said, re.MULTILINE), f"{how} {who}: {said}"
    finally:
        for process in itertools.chain(*running.values()):
            process.kill()  # also one that is frozen


def test_processes_that_torchrun_starts_again_meet_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the store of before, which torchrun holds."""
    port = free_port()
    held = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for attempt in range(2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        store, watching = watch.meet(0, 1)
        assert not store.check(["of the group"])
        store.set("of the group", "x")
        with pytest.raises(ConfigError, match="two processes have RANK 0"):
            watch.meet(0, 1)
        watching.leave()
    assert held
