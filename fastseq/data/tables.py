"""Tables written block by block: whole or not at all, in memory that does not grow with the rows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from fastseq.errors import ConfigError, DataError

from .frames import import_polars

Frames = Iterable[Any]  # of polars, of one schema


def _write_delimited(separator: str, path: Path, blocks: Frames) -> Path:
    with open(path / "table", "wb") as file:
        for number, block in enumerate(blocks):
            block.write_csv(file, include_header=number == 0, separator=separator)
    return path / "table"


def _write_lines(path: Path, blocks: Frames) -> Path:
    with open(path / "table", "wb") as file:
        for block in blocks:
            block.write_ndjson(file)
    return path / "table"


def _write_parquet(path: Path, blocks: Frames) -> Path:
    """Polars writes a Parquet file in one go alone, so blocks are files first, and then one file is made of them: it
    streams them, a few at a time."""
    import polars as pl

    parts = []
    for number, block in enumerate(blocks):
        parts.append(path / f"part-{number:08}.parquet")
        block.write_parquet(parts[-1], compression="lz4")
    pl.scan_parquet(parts).sink_parquet(path / "table")
    return path / "table"


# Each writes into a folder and gives the file.
WRITERS: dict[str, Callable[[Path, Frames], Path]] = {
    ".csv": partial(_write_delimited, ","),
    ".tsv": partial(_write_delimited, "\t"),
    ".parquet": _write_parquet,
    ".jsonl": _write_lines,
}


def check_target(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """The path of a table that can be written there, by its extension.

    Raises:
        ConfigError: if the extension is none of ``WRITERS``, or there is such a file and ``overwrite`` is off.
        DataError: if its folder is not there.
        ImportError: naming the extra, if polars is not installed.
    """
    target = Path(path)
    if target.suffix.lower() not in WRITERS:
        raise ConfigError(
            f"{target}: the extension {target.suffix!r} names no format of tables; known are {', '.join(WRITERS)}"
        )
    if target.is_dir() or (target.exists() and not overwrite):
        what = "is a folder" if target.is_dir() else "exists; --overwrite (overwrite=True) replaces it"
        raise ConfigError(f"{target}: {what}, or choose another file")
    if not target.parent.is_dir():
        raise DataError(f"{target}: there is no folder {target.parent}; make it first")
    import_polars(f"writing {target.name}")
    return target


def write_frames(path: str | os.PathLike[str], frames: Frames, *, overwrite: bool = False) -> None:
    """Writes polars frames one below the other, in the format that the extension names (``WRITERS``).

    They go to a temporary folder beside the file, which takes its place at the end. After an error, or an interrupt, of
    this or of ``frames``, nothing is left of them and a file that was there is as it was.

    Args:
        path: .csv, .tsv, .parquet or .jsonl.
        frames: at least one; of equal columns and types. A Parquet file takes twice its size on disk meanwhile.
        overwrite: replace a file that is there.

    Raises:
        ConfigError, DataError, ImportError: as ``check_target``; DataError if it cannot be written, as where the disk
            is full.
    """
    target = check_target(path, overwrite)
    pl = import_polars(f"writing {target.name}")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent) as folder:
            made = WRITERS[target.suffix.lower()](Path(folder), frames)
            with open(made, "r+b") as file:
                os.fsync(file.fileno())
            check_target(target, overwrite)  # another may have come meanwhile
            os.replace(made, target)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error).splitlines()[0][:200]
        raise DataError(f"{target}: cannot be written ({reason}); free disk space or choose another folder") from error
