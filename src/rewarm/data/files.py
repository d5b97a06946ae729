"""Local files as a source: a file, a folder or a glob."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewarm.data.shards import COMPRESSIONS, FORMATS, LocalShard, format_of
from rewarm.errors import UserError


def find_files(key: str, path: str) -> list[Path]:
    """Return the files of documents at `path`, sorted; `key` is the config's name for it.

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
    found = [file for file in candidates if file.is_file() and format_of(file.name)]
    if not found:
        raise UserError(f"{key}={path}: holds no file of documents ({', '.join(FORMATS)})")
    unreadable = next((file for file in found if not os.access(file, os.R_OK)), None)
    if unreadable is not None:
        raise UserError(f"{key}={path}: {unreadable} cannot be read; change its permissions")
    return found


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


def local_shards(files: Sequence[Path]) -> list[LocalShard]:
    """Return the files as shards."""
    return [LocalShard(file) for file in files]
