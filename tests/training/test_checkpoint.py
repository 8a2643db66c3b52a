"""Checkpoint files: whole or absent, of this model and catalogue, and WarpRec's."""

from __future__ import annotations

import io
import os
import resource
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fastseq import GRU4Rec, load
from fastseq.errors import CheckpointError
from fastseq.training import checkpoint
from tests import run_python
from tests.models.small import small_params

TENSORS = {
    "a": torch.arange(7, dtype=torch.int64),
    "half": torch.randn(3, 5).bfloat16(),
    "flag": torch.tensor([True, False, True]),
    "scalar": torch.tensor(3.0),
    "double": torch.randn(2, 3, 4, dtype=torch.float64),
    "strided": torch.randn(4, 6).T,
    "empty": torch.zeros(0, 3),
}
METADATA = {"kind": "test", "value": 0.1 + 0.2, "nested": {"list": [1, None, "ü"]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


def test_round_trip_is_exact_and_readable_by_the_library(path: Path) -> None:
    checkpoint.save(path, TENSORS, METADATA)
    tensors, metadata = checkpoint.load(path)
    assert metadata == {"format_version": checkpoint.FORMAT_VERSION, **METADATA}
    for loaded in (tensors, load_file(path)):
        assert loaded.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def test_every_truncation_is_refused(path: Path) -> None:
    checkpoint.save(path, TENSORS, METADATA)
    whole = path.read_bytes()
    for size in [0, 1, 7, 8, 20, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"x\.safetensors: not a whole safetensors file"):
            checkpoint.load(path)


@pytest.mark.parametrize(
    ("content", "message"), [(b"PK\x03\x04 not safetensors" * 9, "not a whole safetensors"), (None, "no such file")]
)
def test_foreign_files_are_refused(path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path)


def test_safetensors_of_others_and_of_later_versions_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not one that fastseq wrote"):
        checkpoint.load(path)
    checkpoint.save(path, {}, {"format_version": checkpoint.FORMAT_VERSION + 1})
    with pytest.raises(CheckpointError, match="install a newer fastseq-rec"):
        checkpoint.load(path)


def test_check_same_names_what_differs() -> None:
    checkpoint.check_same("f", "catalogue", {"n_items": 3}, {"n_items": 3, "n_users": 4})
    with pytest.raises(CheckpointError, match="another catalogue: n_items is 3 in the checkpoint and 4 here"):
        checkpoint.check_same("f", "catalogue", {"n_items": 3, "n_users": 1}, {"n_items": 4, "n_users": 1})


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_while_saving_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    checkpoint.save(path, {"a": torch.zeros(3)}, {"n": 1})

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(CheckpointError, match=r"No space left on device.*the file saved before is intact"):
            checkpoint.save(path, {"a": torch.ones(3)}, {"n": 2})
    tensors, metadata = checkpoint.load(path)
    assert metadata["n"] == 1 and torch.equal(tensors["a"], torch.zeros(3))
    assert len(list(path.parent.iterdir())) == 1, "the temporary file is left over"


def test_a_write_that_the_system_cuts_short(path: Path) -> None:
    """A file size limit makes write() itself fail in the middle, as a full disk does."""
    checkpoint.save(path, {"a": torch.zeros(1000)}, {"n": 1})
    script = f"""
        import resource, torch
        from fastseq.errors import CheckpointError
        from fastseq.training import checkpoint
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        try:
            checkpoint.save({str(path)!r}, {{"a": torch.ones(100_000)}}, {{"n": 2}})
        except CheckpointError as error:
            assert "File too large" in str(error) and "intact" in str(error), error
            print("refused")
    """
    assert run_python("-c", textwrap.dedent(script)).stdout == "refused\n"
    assert checkpoint.load(path)[1]["n"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 50_000


def test_where_folders_cannot_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where opening a folder is an error."""

    def refused(*arguments: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "open", refused)
    checkpoint.save(tmp_path / "x.safetensors", {"a": torch.ones(3)}, {"n": 1})
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "x.safetensors")[1]["n"] == 1


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=12), st.sampled_from(["x.safetensors", "m.pth"]))
def test_damaged_files_are_errors_that_name_the_file(
    tmp_path_factory: pytest.TempPathFactory, offset: int, junk: bytes, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    if name == "m.pth":
        torch.save(warprec_content(), path)
    else:
        checkpoint.save(path, TENSORS, METADATA)
    whole = path.read_bytes()
    offset %= len(whole)
    path.write_bytes(whole[:offset] + junk + whole[offset + len(junk) :])
    try:
        checkpoint.load_warprec(path) if name == "m.pth" else checkpoint.load(path)
    except CheckpointError as error:
        assert str(error).startswith(str(path))


# WarpRec's .pth


class Foreign:
    """Stands for the objects among WarpRec's artifacts."""

    def __init__(self) -> None:
        self.table = {"x": [1, 2]}


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def warprec_content(**extra: Any) -> dict[str, Any]:
    return {
        "name": "GRU4Rec",
        "params": {"embedding_size": 4},
        "info": {"n_users": 2, "n_items": 3},
        "state_dict": {"item_embedding.weight": torch.randn(4, 4), "mask": torch.tensor([True])},
        "artifacts": {"seed": 42},
        "format_version": 2,
        "warprec_version": "2.2.8",
        **extra,
    }


@pytest.mark.parametrize("foreign", [None, Foreign(), [Foreign()], {"f": Foreign()}, torch.device("cpu"), {1, 2}])
def test_reads_warprecs_files_whatever_their_artifacts(tmp_path: Path, foreign: Any) -> None:
    content = warprec_content(artifacts={"seed": 42, "object": foreign})
    content["info"]["features"] = foreign
    torch.save(content, tmp_path / "m.pth")
    loaded = checkpoint.load_warprec(tmp_path / "m.pth")
    assert (loaded["name"], loaded["params"]) == ("GRU4Rec", {"embedding_size": 4})
    assert loaded["info"]["n_items"] == 3
    for name, tensor in content["state_dict"].items():
        assert torch.equal(loaded["state_dict"][name], tensor)


def test_what_fastseqs_models_inside_warprec_save_is_loaded(tmp_path: Path) -> None:
    model = GRU4Rec(small_params("GRU4Rec"), {"n_users": 3, "n_items": 5}, seed=7)
    checkpoint.save_warprec(tmp_path / "m.pth", model)
    content = torch.load(tmp_path / "m.pth")
    content["name"], content["params"]["precision"] = "FastGRU4Rec", "bf16"
    torch.save(content, tmp_path / "m.pth")
    loaded = load(tmp_path / "m.pth")
    assert torch.equal(loaded.item_embedding.weight, model.item_embedding.weight)


def test_runs_no_code_of_a_pth_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(warprec_content(artifacts={"evil": Malicious()}), "m.pth")
    assert checkpoint.load_warprec("m.pth")["name"] == "GRU4Rec"
    assert not (tmp_path / "pwned").exists()
    torch.load("m.pth", weights_only=False)
    assert (tmp_path / "pwned").exists(), "the file was harmless: this test shows nothing"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"state_dict": {}}, "no 'name'"),
        (warprec_content(info={"n_users": 2}), "n_items is None"),
        (warprec_content(state_dict={"w": 1}), "is no tensor"),
    ],
)
def test_other_pth_files_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_warprec(tmp_path / "m.pth")


def test_a_pth_file_that_the_system_cuts_short(tmp_path: Path) -> None:
    model = GRU4Rec(small_params("GRU4Rec", embedding_size=64), {"n_users": 1, "n_items": 1000})
    path = tmp_path / "m.pth"
    checkpoint.save_warprec(path, model)
    whole = path.read_bytes()

    class Full(io.RawIOBase):
        """Takes 10 000 bytes and no more."""

        def __init__(self, *arguments: Any) -> None:
            self.taken = 0

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.taken += len(data)
            if self.taken > 10_000:
                raise OSError(28, "No space left on device")
            return len(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "open", Full, raising=False)
        with pytest.raises(CheckpointError, match=r"m\.pth: cannot be saved .*the file saved before is intact"):
            checkpoint.save_warprec(path, model)
    assert path.read_bytes() == whole


def test_truncated_pth_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save(warprec_content(), path)
    whole = path.read_bytes()
    for size in (0, 1, 10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"m\.pth: not a whole WarpRec checkpoint"):
            checkpoint.load_warprec(path)
