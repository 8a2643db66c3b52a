"""Checkpoints: one safetensors file with JSON in its metadata, replaced atomically; WarpRec's ``.pth`` files.

A checkpoint is written beside its final place, flushed to the disk, renamed over the old one, and the folder is
flushed too: whenever the process or the machine stops, the name holds a whole file, the old one or the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastseq.errors import CheckpointError
from fastseq.models.hyperparameters import OBJECTIVE, OWNERS

if TYPE_CHECKING:
    from fastseq.models.base import SequentialRecommender

FORMAT_VERSION = 1
WARPREC_FORMAT = 2  # "format_version" of the .pth files written here
WARPREC_VERSION = "2.2.8"  # the WarpRec whose layout they follow
_KEY = "fastseq"  # the entry of the safetensors metadata that holds the JSON text
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def atomic_write(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Replaces the file ``path`` by what ``write`` writes, wholly or not at all, even if the machine stops meanwhile.

    Args:
        path: the file; its folder exists.
        write: called with an open binary file.

    Raises:
        CheckpointError: if the disk is full or the folder cannot be written to. The old file is then untouched.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _flush_folder(target.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        kept = "; the file saved before is intact" if target.exists() else ""
        raise CheckpointError(
            f"{target}: cannot be saved ({error.strerror or error}){kept}. Free disk space or choose another folder"
        ) from error


def _flush_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` last. Windows opens no folders and has no such call."""
    if sys.platform == "win32":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes one safetensors file atomically.

    The tensors are streamed from where they are: no second copy of the model is made in memory.

    Args:
        path: the file, ``….safetensors`` by custom.
        tensors: any shapes; float, integer and bool dtypes; any device.
        metadata: whatever JSON can hold; read back by ``load``.

    Raises:
        CheckpointError: if it cannot be written. The old file is then untouched.
    """
    # Widest elements first: then every tensor starts at a multiple of its element size, whatever the shapes.
    ordered = sorted(tensors.items(), key=lambda entry: (-entry[1].element_size(), entry[0]))
    text = json.dumps({"format_version": FORMAT_VERSION, **metadata})
    header: dict[str, Any] = {"__metadata__": {_KEY: text}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for _, tensor in ordered:
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)

    atomic_write(path, write)


def load(
    path: str | os.PathLike[str], *, metadata_only: bool = False, mapped: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what ``save`` wrote.

    Args:
        metadata_only: no tensors.
        mapped: the tensors are the file's pages, to be read once and not to be kept; else copies.

    Returns:
        The tensors, on the CPU (none where only the metadata are asked for), and the metadata.

    Raises:
        CheckpointError: if the file is absent, truncated, not a safetensors file, or not one of fastseq's.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            names = [] if metadata_only else file.keys()
            tensors = {name: x if mapped else x.clone() for name in names for x in (file.get_tensor(name),)}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); restore it from a copy, or train again"
        ) from error
    if text is None:
        raise CheckpointError(f"{path}: a safetensors file, but not one that fastseq wrote (no {_KEY!r} metadata)")
    try:
        metadata = json.loads(text)
        version = int(metadata["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its metadata cannot be read ({error!r})") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version}, this fastseq reads up to {FORMAT_VERSION}; install a newer fastseq-rec"
        )
    return tensors, metadata


def check_same(path: str | os.PathLike[str], what: str, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Checks that a checkpoint belongs to this model, catalogue or training run.

    Args:
        path: the checkpoint, for the message.
        what: what the mappings describe, for the message: ``"catalogue"``.
        stored: what the checkpoint says. A key it lacks is not compared.
        expected: what is at hand.

    Raises:
        CheckpointError: naming every key that differs, with both values.
    """
    differing = [
        f"{key} is {stored[key]!r} in the checkpoint and {value!r} here"
        for key, value in expected.items()
        if key in stored and stored[key] != value
    ]
    if differing:
        raise CheckpointError(f"{path}: saved for another {what}: {'; '.join(differing)}")


# WarpRec's .pth


def is_builtin(value: object) -> bool:
    """Whether ``value`` is made of None, bool, int, float, str, and lists, tuples and dicts of those alone."""
    if type(value) in (list, tuple):
        return all(is_builtin(v) for v in value)  # type: ignore[attr-defined]
    if type(value) is dict:
        return all(is_builtin(k) and is_builtin(v) for k, v in value.items())
    return value is None or type(value) in (bool, int, float, str)


def save_warprec(path: str | os.PathLike[str], model: SequentialRecommender) -> None:
    """Writes ``model`` as WarpRec 2.2.8 does: ``torch.save`` of name, params, info, state_dict, artifacts and versions.

    ``artifacts`` holds the model's public attributes that are builtins, so the file loads with ``weights_only=True``.

    Raises:
        CheckpointError: if it cannot be written, or WarpRec's model of that name would compute something else.
    """
    for key in OWNERS:
        if getattr(model, key) != OBJECTIVE[key]:
            raise CheckpointError(
                f"{path}: {key} is {getattr(model, key)!r}, which WarpRec's {type(model).__name__} does not know: keep "
                f"fastseq's checkpoint, or train with {key} {OBJECTIVE[key]!r}"
            )
    if model.shards is not None:
        raise CheckpointError(
            f"{path}: the model holds a part of its tables: load the run's checkpoint in one process, and save that"
        )
    artifacts = {
        name: value
        for name, value in vars(model).items()
        if not name.startswith("_") and name != "training" and is_builtin(value)
    }
    content = {
        "name": type(model).__name__,
        "params": model.get_params(),
        "info": dict(model.info),
        "state_dict": OrderedDict((name, t.detach().cpu().clone()) for name, t in model.state_dict().items()),
        "artifacts": artifacts,
        "format_version": WARPREC_FORMAT,
        "warprec_version": WARPREC_VERSION,
    }

    def write(file: BinaryIO) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch makes of a failed write
            raise OSError(str(error.__context__ or error).splitlines()[0]) from error

    atomic_write(path, write)


def load_warprec(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a WarpRec ``.pth`` without running any code it may hold.

    Objects of classes other than tensors and builtins (a checkpoint keeps every public attribute of its model) are
    read as inert placeholders and left out of the result.

    Returns:
        ``name`` (str), ``params`` (dict), ``info`` (dict with n_users and n_items), ``state_dict`` (str → Tensor).

    Raises:
        CheckpointError: if the file is absent, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content = _load_pickle(path)
    except Exception as error:  # a damaged pickle raises nearly anything
        raise CheckpointError(f"{path}: not a whole WarpRec checkpoint ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected WarpRec's dictionary")
    contents: dict[str, Any] = {}
    for key, kind in (("name", str), ("params", dict), ("info", dict), ("state_dict", dict)):
        if not isinstance(content.get(key), kind):
            raise CheckpointError(f"{path}: no {key!r} of type {kind.__name__}: not a WarpRec checkpoint")
        contents[key] = content[key]
    contents["params"] = {str(k): v for k, v in contents["params"].items() if is_builtin(v)}
    contents["info"] = {str(k): v for k, v in contents["info"].items() if is_builtin(v)}
    contents["state_dict"] = dict(contents["state_dict"])
    for key in ("n_users", "n_items"):
        if not isinstance(contents["info"].get(key), int):
            raise CheckpointError(f"{path}: info.{key} is {contents['info'].get(key)!r}, expected an integer")
    for name, tensor in contents["state_dict"].items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: state_dict[{name!r}] is no tensor")
    return contents


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # it holds other classes
        inert = SimpleNamespace(__name__="inert_pickle", Unpickler=_InertUnpickler, load=_inert_load)
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=inert)


class _Inert:
    """Stands for an object of any class but those that hold tensors: accepts everything, does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> _Inert:
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Of pickled lists."""

    def extend(self, values: object) -> None:
        """Of pickled lists."""

    def add(self, value: object) -> None:
        """Of pickled sets."""


class _InertUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers; every other class becomes ``_Inert``, and nothing else is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) in (
            ("torch._utils", "_rebuild_tensor_v2"),
            ("torch._utils", "_rebuild_parameter"),
            ("torch", "Size"),
        ) or (module == "torch" and (name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype))):
            return super().find_class(module, name)
        return _Inert


def _inert_load(file: BinaryIO, **options: Any) -> Any:
    return _InertUnpickler(file, **options).load()
