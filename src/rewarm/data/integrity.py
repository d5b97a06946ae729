"""Whether a store's shards are what was written: each file is read for it once, and that is remembered beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from rewarm.data.layout import KEYS, PARTS, SEALED_KEYS, Shard, StoreSpec, shard_path
from rewarm.errors import DataError
from rewarm.storage import is_sealed, load_object

CHECKED = "checked.jsonl"
ROW_BYTES = 24
"""Bytes of a row of `.documents`."""
Identity = tuple[int, int, int, int]
"""A file's inode, size, and times of last change of its content and of its inode. Not the device: on a shared file
system each node has another number for it."""


class DamagedShardError(DataError):
    """A shard that is not what was written; `files` are those to be set aside."""

    def __init__(self, files: list[Path], message: str) -> None:
        super().__init__(message)
        self.files = files


class _Checksums:
    """SHA-256 of a store's files. A file is read again only where its identity is new."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[Identity, str]] = {}
        self.first: dict[str, str] = {}
        """The checksum that each file had when it was first read."""
        for name, identity, checksum in _remembered(folder / CHECKED):
            self._known[name] = identity, checksum
            self.first.setdefault(name, checksum)

    def of(self, path: Path) -> str:
        """Return the checksum of a file of the store."""
        status = path.stat()
        identity = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        known = self._known.get(path.name)
        if known is not None and known[0] == identity:
            return known[1]
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        self._known[path.name] = identity, checksum
        self.first.setdefault(path.name, checksum)
        line = json.dumps({"file": path.name, "identity": identity, "sha256": checksum}) + "\n"
        with suppress(OSError), (self._folder / CHECKED).open("a") as file:  # only spares reading the file again
            file.write(line)
        return checksum


def _remembered(path: Path) -> Iterator[tuple[str, Identity, str]]:
    """Yield what `checked.jsonl` holds, less lines that are damaged or unfinished."""
    with suppress(OSError):
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                inode, size, modified, changed = row["identity"]
                yield str(row["file"]), (inode, size, modified, changed), str(row["sha256"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue


class Shards:
    """The committed shards of a store, each found to be what was written.

    A shard of the first version has no checksums. It is held against those that its files had when they were first
    read, and was looked over then: sizes, token ids and where documents end. What had changed before is not known.
    """

    def __init__(self, folder: Path, spec: StoreSpec) -> None:
        self._folder, self._spec = folder, spec
        self._checksums = _Checksums(folder)

    def after(self, last: Shard | None) -> Shard | None:
        """Return the shard after `last` (None: the first one), or None where it is not there (yet).

        Raises `DamagedShardError` where it is not what was written.
        """
        number, start = (last.number + 1, last.end) if last else (0, 0)
        path = shard_path(self._folder, number, "json")
        if not path.is_file():
            return None
        manifest = load_object(path)
        if manifest is None or not _is_manifest(manifest):
            raise DamagedShardError([path], f"{path}: is not what was written")
        shard = Shard(number, start, manifest)
        tokens, documents = (shard_path(self._folder, number, part) for part in PARTS)
        files = [path, tokens, documents]
        if manifest.get("store", self._spec.digest) != self._spec.digest:
            raise DamagedShardError(files, f"{path}: belongs to another store")
        if manifest.get("start", start) != start:
            raise DamagedShardError(files, f"{path}: starts at token {manifest['start']:,}, not {start:,}")
        sizes = {tokens: shard.tokens * self._spec.dtype.itemsize, documents: manifest["documents"] * ROW_BYTES}
        faults = {file: fault for file, size in sizes.items() if (fault := _size_fault(file, size))}
        if "checksums" in manifest:
            faults |= self._faults(dict(zip((tokens, documents), map(manifest["checksums"].get, PARTS), strict=True)))
            files = list(faults)
        elif not faults:
            if tokens.name not in self._checksums.first and (fault := _looks_wrong(shard, self._spec, *sizes)):
                faults = {path: fault}
            else:
                faults = self._faults({file: self._checksums.first.get(file.name) for file in files})
        if faults:
            raise DamagedShardError(files, "; ".join(f"{file}: {fault}" for file, fault in faults.items()))
        return shard

    def _faults(self, expected: Mapping[Path, str | None]) -> dict[Path, str]:
        """Return which files have another checksum than expected (None: than when they were first read)."""
        faults = {}
        for file, checksum in expected.items():
            try:
                found = self._checksums.of(file)
            except OSError as error:
                faults[file] = f"cannot be read ({error.strerror})"
                continue
            if found != (checksum or self._checksums.first[file.name]):
                faults[file] = "is not what was written (checksum differs)"
        return faults


def _is_manifest(values: Mapping[str, Any]) -> bool:
    """Return whether an object is a shard's manifest as it was written; the first version's has no checksum."""
    if values.keys() == SEALED_KEYS:
        return is_sealed(values)
    counts, names = (values.get("tokens"), values.get("documents")), values.get("domain_names")
    return (
        values.keys() == KEYS
        and all(isinstance(count, int) and count > 0 for count in counts)
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and isinstance(values["domains"], dict)
        and isinstance(values["cursor"], dict | None)
    )


def _size_fault(file: Path, size: int) -> str | None:
    try:
        held = file.stat().st_size
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if held == size else f"holds {held:,} bytes, and its manifest says {size:,}"


def _looks_wrong(shard: Shard, spec: StoreSpec, tokens: Path, documents: Path) -> str | None:
    """Return what cannot be in a shard without checksums, or None."""
    rows = np.fromfile(documents, dtype="<i8").reshape(-1, 3)
    lengths = np.diff(rows[:, 0], prepend=0)
    names = len(shard.manifest["domain_names"])
    if (lengths < 1).any() or int(rows[-1, 0]) != shard.tokens or (rows[:, 2] < 0).any():
        return "does not say where documents end"
    if (rows[:, 1] < 0).any() or (rows[:, 1] >= names).any():
        return f"holds a domain that is none of {names}"
    highest = int(np.fromfile(tokens, dtype=spec.dtype).max())
    return f"holds the token id {highest:,} of {spec.vocab_size:,}" if highest >= spec.vocab_size else None
