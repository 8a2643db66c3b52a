"""Checkpoints of tables that are divided over processes: a file of each process beside the one that names them all."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastseq.errors import CheckpointError
from fastseq.models.shards import Shards

from . import checkpoint


def save(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    rows: Mapping[str, int] | None = None,
    shards: Shards | None = None,
) -> None:
    """``checkpoint.save``, or with ``shards`` that of all processes together, in a folder that all of them see.

    Each process writes its rows; when all have, the first replaces ``path``, which names their files, and deletes those
    of before. So whenever a process or the machine stops, ``path`` and what it names are whole.

    Args:
        rows: of tensors that are divided, how many rows the whole has.
    """
    if shards is None:
        checkpoint.save(path, tensors, metadata)
        remove(path)
        return
    rows = {name: count for name, count in (rows or {}).items() if name in tensors}
    drawn = torch.tensor([secrets.randbits(62)])
    dist.broadcast(drawn, 0)
    of = f"{int(drawn):016x}"
    parts = {"of": of, "world_size": shards.world_size}
    own = {name: tensors[name] for name in rows}
    checkpoint.save(_part(path, parts, shards.rank), own, {"kind": "part", "rank": shards.rank, **parts})
    dist.barrier()
    if shards.rank == 0:
        rest = {name: tensor for name, tensor in tensors.items() if name not in rows}
        checkpoint.save(path, rest, {**metadata, "parts": {**parts, "rows": dict(rows)}})
        remove(path, of)


def load(
    path: Path, rows: Collection[str] = (), shards: Shards | None = None, *, mapped: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """``checkpoint.load``: of divided tensors, by however many processes they were written, the rows of ``shards``, or
    all of them (None).

    Args:
        rows: the names of tensors to divide, where the checkpoint has whole ones.
        mapped: as there.

    Raises:
        CheckpointError: if a file is missing, damaged, or of another checkpoint.
    """
    tensors, metadata = checkpoint.load(path, mapped=mapped or shards is not None)
    if parts := metadata.get("parts"):
        try:
            divided = _assembled(path, parts, shards or Shards(0, 1))
            return {name: x.clone() for name, x in tensors.items()} | divided, metadata
        except CheckpointError:
            if checkpoint.load(path, metadata_only=True)[1].get("parts") == parts:
                raise
            return load(path, rows, shards, mapped=mapped)  # replaced meanwhile by a training
    if shards is not None:
        tensors = {
            name: x[shards.rank :: shards.world_size].clone() if name in rows else x.clone()
            for name, x in tensors.items()
        }
    return tensors, metadata


def remove(path: Path, but: str | None = None) -> None:
    """Deletes the files of processes beside ``path``, half-written ones too, but those of the checkpoint ``but``."""
    for pattern in (f"{path.stem}.*-of-*{path.suffix}", f".{path.stem}.*-of-*{path.suffix}.tmp"):
        for file in path.parent.glob(pattern):
            if but is None or but not in file.name:
                with contextlib.suppress(OSError):
                    file.unlink()


def _part(path: Path, parts: Mapping[str, Any], rank: int) -> Path:
    return path.with_name(f"{path.stem}.{parts['of']}.{rank}-of-{parts['world_size']}{path.suffix}")


def _assembled(path: Path, parts: Mapping[str, Any], shards: Shards) -> dict[str, Tensor]:
    """The rows of ``shards`` of all tensors that the checkpoint divides, a file at a time."""
    writers = Shards(0, parts["world_size"])
    files = [_part(path, parts, rank) for rank in range(writers.world_size)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{path}: written by {writers.world_size} processes, but {', '.join(missing)} is missing beside it: "
            "restore it, or train again"
        )
    result: dict[str, Tensor] = {}
    for rank, file in enumerate(files):
        of_rank = {
            name: torch.arange(rank, max(rank, rows), writers.world_size) for name, rows in parts["rows"].items()
        }
        wanted = {name: ids % shards.world_size == shards.rank for name, ids in of_rank.items()}
        if not any(mine.any() for mine in wanted.values()) and rank != shards.rank % writers.world_size:
            continue  # one at least is read, which gives the tensors of no rows their shapes
        tensors, metadata = checkpoint.load(file, mapped=True)
        expected = {"kind": "part", "of": parts["of"], "rank": rank, "world_size": writers.world_size}
        checkpoint.check_same(file, "checkpoint", metadata, expected)
        for name, ids in of_rank.items():
            rows = tensors.get(name)
            if rows is None or rows.shape[0] != ids.shape[0]:
                found = "none" if rows is None else f"{rows.shape[0]} rows"
                raise CheckpointError(f"{file}: {name} has {found}, expected {ids.shape[0]}: restore it from a copy")
            whole = result.setdefault(name, rows.new_empty(shards.count(parts["rows"][name]), *rows.shape[1:]))
            mine = wanted[name]
            whole[ids[mine] // shards.world_size] = rows[mine]
    return result
