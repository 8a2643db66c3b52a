"""Files as streams of bytes: compressed ones unpacked on the way, folders as the files in them."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fastseq.errors import DataError

PACKED: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
# Modules that unpack zst, and how: the standard library has one from Python 3.14 on.
ZSTD: dict[str, Callable[[Any, IO[bytes]], Any]] = {
    "compression.zstd": lambda module, raw: module.open(raw),
    "zstandard": lambda module, raw: module.ZstdDecompressor().stream_reader(raw, read_across_frames=True),
    "pyarrow": lambda module, raw: module.CompressedInputStream(raw, "zstd"),
}
DAMAGES = (OSError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError)


def files_of(path: Path) -> list[Path]:
    """The file itself, or the files of a folder and its folders by name, without hidden ones and marks (``_SUCCESS``).

    Raises:
        DataError: if a folder has none.
    """
    if not path.is_dir():
        return [path]
    inside = [file for file in sorted(path.rglob("*")) if file.is_file()]
    files = [file for file in inside if not any(part[0] in "._" for part in file.relative_to(path).parts)]
    if not files:
        raise DataError("the folder has no files")
    return files


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[io.BufferedReader, Path]]:
    """The bytes of a file, and the name that they have without packing (that of the one file in a zip).

    Raises:
        DataError: if it cannot be unpacked.
        OSError: if it cannot be opened.
    """
    packing = path.suffix.lower()
    with open(path, "rb") as raw:
        if packing not in (*PACKED, ".zip", ".zst"):
            yield raw, path
            return
        try:
            stream, name = _stream(raw, packing, path)
            with stream:
                yield io.BufferedReader(stream), name
        except DAMAGES as error:
            raise DataError(f"cannot be unpacked ({error})") from None


def _stream(raw: IO[bytes], packing: str, path: Path) -> tuple[Any, Path]:
    if packing == ".zip":
        archive = zipfile.ZipFile(raw)
        members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
        if len(members) != 1 or members[0].flag_bits & 1:
            what = "one that is not encrypted" if len(members) == 1 else "one"
            raise DataError(f"the archive holds {len(members)} files, expected {what}: unpack the one to read")
        return archive.open(members[0]), Path(members[0].filename)
    if packing in PACKED:
        return PACKED[packing](raw), path.with_suffix("")
    for name, opened in ZSTD.items():
        try:
            return opened(importlib.import_module(name), raw), path.with_suffix("")
        except ImportError:
            continue
    raise DataError("zst needs Python 3.14, zstandard or pyarrow: pip install zstandard, or unpack it (zstd -d)")
