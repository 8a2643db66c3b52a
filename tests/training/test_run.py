"""The run folder, and models made of it again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import fastseq.models
from fastseq.data.interactions import build_interactions
from fastseq.data.split import Split, leave_one_out
from fastseq.errors import CheckpointError, ConfigError
from fastseq.models import GRU4Rec
from fastseq.training import checkpoint, save_warprec
from fastseq.training import run as run_module
from fastseq.training.distributed import Ranks
from fastseq.training.run import RunFolder, load
from fastseq.training.state import save_best
from tests.models.small import small_params

from .tiny import same_weights

PARAMS = small_params("GRU4Rec", embedding_size=4, hidden_size=6, neg_samples=2)


def make_split() -> Split:
    return leave_one_out(build_interactions(["u1", "u1", "u1", "ü2", "ü2"], ["a", "b", "c", "c", "ä"]))


def make_model(split: Split) -> GRU4Rec:
    return GRU4Rec(PARAMS, {"n_users": split.interactions.n_users, "n_items": split.interactions.n_items}, seed=3)


def filled(path: Path, split: Split, model: GRU4Rec) -> RunFolder:
    run = RunFolder(path)
    run.write_ids(split.interactions.user_ids, split.interactions.item_ids)
    save_best(run.best_path, model, split, {"epoch": 1})
    return run


def test_a_used_folder_is_refused_resumed_or_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "x"
    run = RunFolder(path)
    RunFolder(path)  # still empty
    run.write_config({"models": {"GRU4Rec": {"epochs": 1}}})
    assert yaml.safe_load(run.config_path.read_text()) == {"models": {"GRU4Rec": {"epochs": 1}}}
    (path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"runs/x: .*--resume.*--overwrite"):
        RunFolder(path)
    with pytest.raises(CheckpointError, match="exclude each other"):
        RunFolder(path, resume=True, overwrite=True)
    assert RunFolder(path, resume=True).config_path.exists()
    assert not RunFolder(path, overwrite=True).config_path.exists()
    assert (path / "notes.txt").read_text() == "mine", "a file that no run wrote was deleted"


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(CheckpointError, match="x: cannot be used as run folder"):
        RunFolder(tmp_path / "x")
    with pytest.raises(CheckpointError, match="not a run folder"):
        RunFolder.existing(tmp_path / "absent")


def test_metrics_lines_are_appended_truncated_and_read(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "x")
    assert run.read_metrics() == []
    size = run.append_metrics({"step": 1, "loss": 0.5})
    run.append_metrics({"step": 2})
    with open(run.metrics_path, "ab") as file:
        file.write(b'{"step": 3')  # a crash in the middle of a line
    assert run.read_metrics() == [{"step": 1, "loss": 0.5}, {"step": 2}]
    run.truncate_metrics(size)
    assert [json.loads(line) for line in run.metrics_path.read_text().splitlines()] == [{"step": 1, "loss": 0.5}]
    run.truncate_metrics(10**6)
    assert run.metrics_path.stat().st_size == size


def test_a_damaged_line_of_metrics_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "x")
    run.append_metrics({"step": 1})
    with open(run.metrics_path, "ab") as file:
        file.write(b"{'step': 2}\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2 is not JSON"):
        run.read_metrics()


def test_overwriting_begins_with_what_could_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed half-way, the folder must not pass for the old run with its metrics gone."""
    run = RunFolder(tmp_path / "x")
    for path in (run.last_path, run.best_path, run.metrics_path, run.config_path):
        path.write_text("old")
    unlink, calls = Path.unlink, 0

    def killed(path: Path, missing_ok: bool = False) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        RunFolder(run.path, overwrite=True)
    assert not run.last_path.exists() and run.metrics_path.exists()


def test_all_processes_learn_that_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "SEEN_SECONDS", 0.0)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.txt").write_text("mine")
    said: list[torch.Tensor] = []

    class Pair(Ranks):
        """Two processes, one after the other: what the first says is what the second hears."""

        def sum(self, tensor: torch.Tensor) -> torch.Tensor:
            said.append(tensor)
            return torch.stack(said).sum(0)

    with pytest.raises(CheckpointError, match="--overwrite"):
        RunFolder.open(tmp_path / "x", Pair(0, 2))
    with pytest.raises(CheckpointError, match="the first process says why"):
        RunFolder.open(tmp_path / "x", Pair(1, 2))
    said.clear()
    folder = RunFolder.open(tmp_path / "here", Pair(0, 2))
    shutil.copytree(folder.path, tmp_path / "a copy")
    (tmp_path / "a copy" / ".lock").write_text("1 of an earlier run")
    for elsewhere in ("not shared", "a copy"):
        with pytest.raises(CheckpointError, match=r"rank 1 does not see the run folder.*a file system that they share"):
            RunFolder.open(tmp_path / elsewhere, Pair(1, 2))
    said.clear()
    assert RunFolder.open(tmp_path / "y", Pair(0, 2)).path == RunFolder.open(tmp_path / "y", Pair(1, 2)).path


@pytest.mark.parametrize("kind", ["int", "str"])
def test_ids_come_back(tmp_path: Path, kind: str) -> None:
    users, items = ([7, 7, -3], [10**15, 5, 5]) if kind == "int" else (["ü", "ü", ""], ["a", "b", "b"])
    data = build_interactions(users, items)
    run = RunFolder(tmp_path / "x")
    run.write_ids(data.user_ids, data.item_ids)
    assert run.read_ids() == (data.user_ids, data.item_ids)


def test_load_gives_the_model_back(tmp_path: Path) -> None:
    split = make_split()
    model = make_model(split)
    run = filled(tmp_path / "x", split, model)
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    loaded = load(run.path)
    assert torch.equal(torch.rand(3), expected[0]) and (np.random.rand(3) == expected[1]).all()
    assert type(loaded) is GRU4Rec and not loaded.training and loaded.get_params() == model.get_params()
    assert same_weights(loaded, model)
    assert loaded.catalogue is not None and loaded.catalogue.items == split.interactions.item_ids
    assert load(run.best_path).catalogue is not None
    save_warprec(tmp_path / "m.pth", model)
    content = torch.load(tmp_path / "m.pth", weights_only=True)
    assert content.keys() == {"name", "params", "info", "state_dict", "artifacts", "format_version", "warprec_version"}
    assert content["format_version"] == 2 and content["artifacts"]["n_items"] == model.n_items
    again = load(tmp_path / "m.pth")
    assert again.catalogue is None and same_weights(again, model)


def test_load_refuses_what_does_not_fit(tmp_path: Path) -> None:
    split = make_split()
    model = make_model(split)
    run = filled(tmp_path / "x", split, model)
    with pytest.raises(CheckpointError, match="no checkpoint has been saved"):
        load(RunFolder(tmp_path / "new").path)
    with pytest.raises(CheckpointError, match="holds no model"):
        load(run.ids_path)
    tensors, metadata = checkpoint.load(run.best_path)
    other = tmp_path / "o.safetensors"
    for change, message in (
        ({"model": "BERT4Rec"}, "'BERT4Rec', expected one of SASRec"),
        ({"params": metadata["params"] | {"hidden_size": 7}}, "weights do not fit GRU4Rec"),
        ({"params": {"embedding_size": 0}}, "hyperparameters make no GRU4Rec"),
    ):
        checkpoint.save(other, tensors, metadata | change)
        with pytest.raises(CheckpointError, match=message):
            load(other)
    run.write_ids(split.interactions.item_ids, split.interactions.user_ids)
    with pytest.raises(CheckpointError, match=r"another catalogue: .*item_ids"):
        load(run.path)


def test_a_model_is_loaded_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_split()
    filled(tmp_path / "x", split, make_model(split))
    with monkeypatch.context() as patch:
        patch.setattr("fastseq.training.run.find_device", torch.device)
        model = load(tmp_path / "x", "meta")
        assert {x.device.type for x in (*model.parameters(), *model.buffers())} == {"meta"}
    assert load(tmp_path / "x").item_embedding.weight.device.type == "cpu"
    with pytest.raises(ConfigError, match="device is 'gpu', expected auto, cpu or cuda"):
        load(tmp_path / "x", "gpu")


def test_every_model_can_be_loaded() -> None:
    assert set(fastseq.models.MODELS) == {"SASRec", "GRU4Rec", "Caser"}


def test_one_training_process_a_folder(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run", lock=True)
    first.write_config("kept: true")
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(CheckpointError, match=rf"process {os.getpid()} is training in this run folder"):
            RunFolder(tmp_path / "run", lock=True, **options)
    assert first.config_path.read_text() == "kept: true"
    first.unlock()
    RunFolder(tmp_path / "run", resume=True, lock=True).unlock()


def test_a_folder_that_cannot_be_made_is_not_locked(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    (tmp_path / ".lock").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="cannot be used as run folder") as error:  # held, as a notebook holds it
        RunFolder(tmp_path, overwrite=True, lock=True)
    (tmp_path / "checkpoints").unlink()
    RunFolder(tmp_path, overwrite=True, lock=True).unlock()
    assert error


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time; from fastseq.training.run import RunFolder; folder = RunFolder(sys.argv[1], lock=True); "
        "print('locked', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        for _ in range(2):
            with pytest.raises(CheckpointError, match=rf"run: process {process.pid} is training .* another folder"):
                RunFolder(tmp_path / "run", resume=True, lock=True)
        process.kill()
    RunFolder(tmp_path / "run", resume=True, lock=True).unlock()
