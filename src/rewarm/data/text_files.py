"""The files that documents lie in: which of them a path names, and their decompressed bytes, wherever they are."""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rewarm.errors import UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMATS = (".jsonl", ".json", ".ndjson", ".txt", ".parquet")
COMPRESSIONS = (".zst", ".gz")
SKIP = 1 << 20
"""Bytes that are read at once where content is passed over."""
LARGEST_WINDOW = {int(zstd.DecompressionParameter.window_log_max): 31}
"""Files made with `zstd --long` refer back further than zstd reads by default."""
DAMAGED = (EOFError, zlib.error, zstd.ZstdError, ValueError, OSError)
"""What reading a truncated or damaged file raises."""


class TextFile(Protocol):
    """A file of documents."""

    @property
    def name(self) -> str:
        """Return the name that tells the file from the others of its stream, and leads its errors."""
        ...

    def open(self) -> BinaryIO:
        """Return the file's bytes, as they lie, seekable."""
        ...


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine."""

    path: Path

    @property
    def name(self) -> str:
        """Return the path."""
        return str(self.path)

    def open(self) -> BinaryIO:
        """Return the file, open."""
        return self.path.open("rb")


def format_of(name: str) -> str | None:
    """Return the format that a file's name gives (`.jsonl`, `.txt`, `.parquet`), or None for another."""
    suffixes = Path(name.lower()).suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in FORMATS:
        return None
    return ".jsonl" if suffixes[-1] in (".json", ".ndjson") else suffixes[-1]


def find_files(key: str, path: str) -> list[Path]:
    """Return the files of documents at `path`: a file, a folder or a glob; `key` is the config's name for it.

    Raises `UserError` where there is none.
    """
    given = Path(path).expanduser()
    if given.is_file():
        if format_of(given.name) is None:
            known = ", ".join(FORMATS)
            raise UserError(f"{key}={path}: is none of {known}, with {' or '.join(COMPRESSIONS)} or without")
        return [given]
    if given.is_dir():
        candidates: Sequence[Path] = sorted(given.rglob("*"))
    elif glob.has_magic(path):
        # Path.glob takes no absolute pattern.
        candidates = sorted(Path(found) for found in glob.glob(str(given), recursive=True))  # noqa: PTH207
    else:
        raise UserError(f"{key}={path}: there is no such file or folder")
    files = [file for file in candidates if file.is_file() and format_of(file.name)]
    if not files:
        raise UserError(f"{key}={path}: holds no file of documents ({', '.join(FORMATS)})")
    unreadable = next((file for file in files if not os.access(file, os.R_OK)), None)
    if unreadable is not None:
        raise UserError(f"{key}={path}: {unreadable} cannot be read; change its permissions")
    return files


def identity_of(files: Sequence[Path]) -> Mapping[str, Any]:
    """Return what tells the files' content from any other: names, sizes and times of last change.

    Folders above the files do not count, so a corpus may move as a whole.
    """
    root = os.path.commonpath([file.resolve().parent for file in files])
    rows = [
        [os.path.relpath(file.resolve(), root), status.st_size, status.st_mtime_ns]
        for file in files
        for status in (file.stat(),)
    ]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return {"kind": "files", "files": len(files), "digest": digest}


def content(file: TextFile, raw: BinaryIO, start: int) -> BinaryIO:
    """Return the decompressed content of an open file from byte `start` on; reading raises where it is truncated.

    What is compressed can only be read from its beginning, and the first `start` bytes are thrown away.
    """
    suffix = Path(file.name.lower()).suffix
    if suffix not in COMPRESSIONS:
        raw.seek(start)
        return raw
    opened = gzip.GzipFile(fileobj=raw) if suffix == ".gz" else zstd.ZstdFile(raw, options=LARGEST_WINDOW)
    stream = io.BufferedReader(opened, SKIP)
    while start > 0:
        skipped = len(stream.read(min(start, SKIP)))
        if not skipped:
            break
        start -= skipped
    return stream
