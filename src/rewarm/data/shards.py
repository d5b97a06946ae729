"""Raw shards: the files that documents lie in, as a stream of decompressed bytes, wherever they are."""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

CHUNK = 1 << 17
FORMATS = (".jsonl", ".json", ".ndjson", ".txt", ".parquet")
COMPRESSIONS = (".zst", ".gz")


class Shard(Protocol):
    """A file of documents."""

    @property
    def name(self) -> str:
        """Return the name that tells the shard from the others of its stream, and leads its errors."""
        ...

    def open(self) -> BinaryIO:
        """Return the shard's bytes, as they lie, seekable."""
        ...


@dataclass(frozen=True)
class LocalShard:
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


class _ZstdReader(io.RawIOBase):
    """The content of a zstd file of any number of frames. Unlike zstandard's own, it tells a truncated one."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._pending:
            data = self._raw.read(CHUNK)
            if not data:
                if self._frame is not None:
                    raise EOFError("ends in the middle of a zstd frame")
                return 0
            self._pending = memoryview(self._decompress(data))
        n = min(len(buffer), len(self._pending))
        buffer[:n] = self._pending[:n]
        self._pending = self._pending[n:]
        return n

    def _decompress(self, data: bytes) -> bytes:
        pieces = []
        while data:
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            pieces.append(self._frame.decompress(data))
            if not self._frame.eof:
                break
            data = self._frame.unused_data
            self._frame = None
        return b"".join(pieces)


def content(shard: Shard, file: BinaryIO, start: int) -> BinaryIO:
    """Return the decompressed content of an open shard from byte `start` on.

    What is compressed can only be read from its beginning, and the first `start` bytes are thrown away.
    """
    compressed = {".zst": _ZstdReader, ".gz": gzip.GzipFile}.get(Path(shard.name.lower()).suffix)
    if compressed is None:
        file.seek(start)
        return file
    raw = _ZstdReader(file) if compressed is _ZstdReader else gzip.GzipFile(fileobj=file)
    stream = io.BufferedReader(raw, 1 << 20)
    while start > 0:
        skipped = len(stream.read(min(start, 1 << 20)))
        if not skipped:
            break
        start -= skipped
    return stream
