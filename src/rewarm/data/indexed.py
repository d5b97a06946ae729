"""Tokens that exist already, as Megatron and GPT-NeoX write them: read in place, never copied.

`NAME.idx` says how long each sequence is and what type the ids have; `NAME.bin` holds them, one after the other. A
large `.bin` may lie in parts, `NAME-00000-of-00020.bin` and so on, as the hub has Pythia's own data.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewarm.data.segments import Segments
from rewarm.data.tokenizers import Tokenizer
from rewarm.errors import DataError, UserError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<QBQQ")  # version, type of the ids, sequences, documents
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f4", 7: "<f8", 8: "<u2"}
SAMPLES, SAMPLE_TOKENS = 64, 2048


def index_of(path: str | None) -> Path | None:
    """Return the index file that `path` (NAME, NAME.idx or NAME.bin) stands for; None where it is something else."""
    if path is None:
        return None
    given = Path(path).expanduser()
    if given.suffix in (".idx", ".bin"):
        return given.with_suffix(".idx")
    index = given.with_name(given.name + ".idx")
    return index if not given.exists() and index.is_file() else None


class IndexedTokens:
    """The sequences of an indexed dataset from the share `first` to the share `last` (0 to 1), as one row of tokens.

    Raises `UserError` for a dataset whose index and tokens do not belong together. The ids are held against the
    tokenizer's wherever they are read, and raise `DataError` where it does not have them.
    """

    def __init__(self, key: str, index: Path, tokenizer: Tokenizer, first: float = 0.0, last: float = 1.0) -> None:
        self.folder = index
        self._tokenizer = tokenizer
        dtype, sizes = _read_index(f"{key}={index}", index)
        parts = _parts(f"{key}={index}", index)
        self._segments = Segments(dtype)
        for part in parts:
            if part.stat().st_size % dtype.itemsize:
                raise UserError(f"{key}={part}: is truncated in the middle of a token")
            self._segments.append(part, part.stat().st_size // dtype.itemsize)
        total = int(sizes.sum(dtype=np.int64))
        if total != self._segments.n_tokens:
            raise UserError(
                f"{key}={index}: promises {total:,} tokens, but {parts[0].name}{' and its like' * (len(parts) > 1)} "
                f"holds {self._segments.n_tokens:,}; fetch it again"
            )
        bounds = round(first * len(sizes)), round(last * len(sizes))
        self._start = int(sizes[: bounds[0]].sum(dtype=np.int64))
        self._sizes = sizes[bounds[0] : bounds[1]]
        self._n_tokens = int(self._sizes.sum(dtype=np.int64))
        self.digest = hashlib.sha256(
            repr((index.name, total, dtype.name, bounds, tokenizer.fingerprint)).encode() + sizes[:4096].tobytes()
        ).hexdigest()[:24]
        self.sample = self._sample()
        """Tells the tokens from others of the same shape, which `digest` does not: it knows their index only."""

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens."""
        return self._n_tokens

    def stride(self, context: int) -> int:
        """Return `context` + 1 where each sequence of the dataset has just that length: they are then kept whole."""
        whole = len(self._sizes) > 0 and bool((self._sizes == context + 1).all())
        return context + 1 if whole else context

    def ensure(self, n_tokens: int) -> None:
        """Do nothing: all there will be is there."""

    def gather(self, starts: NDArray[np.int64], length: int) -> NDArray[Any]:
        """Return the `length` tokens from each of `starts` on, of shape (n, length)."""
        rows = self._segments.gather(starts + self._start, length)
        self._check(rows)
        return rows

    def documents(self, until: int) -> Iterator[tuple[int, str, int]]:
        """Yield for each sequence of the first `until` tokens where it ends, no domain, and its bytes as text."""
        end = 0
        for size in self._sizes.tolist():
            if end >= until:
                return
            if size == 0:
                continue
            ids = self.gather(np.array([end], dtype=np.int64), size)[0]
            end += size
            yield end, "", len(self._tokenizer.decode(ids).encode("utf-8", "replace"))

    def _sample(self) -> str:
        """Check the ids of tokens from all over the dataset, and return their checksum."""
        length = min(SAMPLE_TOKENS, self._n_tokens)
        starts = np.linspace(0, self._n_tokens - length, SAMPLES).astype(np.int64)
        return hashlib.sha256(self.gather(starts, length).tobytes() if length else b"").hexdigest()[:24]

    def _check(self, rows: NDArray[Any]) -> None:
        low, high = int(rows.min(initial=0)), int(rows.max(initial=0))
        if low < 0 or high >= self._tokenizer.size:
            raise DataError(
                f"{self.folder}: holds the token id {low if low < 0 else high:,}, but the tokenizer has ids 0 to "
                f"{self._tokenizer.size - 1:,}: it was made with another one; set data.tokenizer to that"
            )


def _read_index(what: str, index: Path) -> tuple[np.dtype[Any], NDArray[np.int32]]:
    """Return the type of the ids and the length of each sequence."""
    if not index.is_file():
        raise UserError(f"{what}: there is no such index file")
    with index.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{what}: is no index of Megatron or GPT-NeoX")
        header = file.read(HEADER.size)
        if len(header) < HEADER.size:
            raise UserError(f"{what}: is truncated")
        version, code, sequences, documents = HEADER.unpack(header)
    dtype = np.dtype(DTYPES.get(code, "V1"))
    if version != 1 or dtype.kind not in "iu":
        raise UserError(f"{what}: holds {dtype.name} (version {version}), not token ids")
    offset = len(MAGIC) + HEADER.size
    if index.stat().st_size < offset + 12 * sequences + 8 * documents:
        raise UserError(f"{what}: is truncated")
    sizes = np.memmap(index, dtype="<i4", mode="r", offset=offset, shape=(sequences,))
    pointers = np.memmap(index, dtype="<i8", mode="r", offset=offset + 4 * sequences, shape=(sequences,))
    if sequences and (
        int(pointers[0]) != 0 or int(pointers[-1]) + int(sizes[-1]) * dtype.itemsize != _size(what, index)
    ):
        raise UserError(f"{what}: points elsewhere than its .bin file ends; one of the two is truncated")
    return dtype, sizes


def _parts(what: str, index: Path) -> list[Path]:
    whole = index.with_suffix(".bin")
    parts = [whole] if whole.is_file() else sorted(index.parent.glob(f"{index.stem}-?????-of-?????.bin"))
    if not parts:
        raise UserError(f"{what}: {whole.name} is missing")
    return parts


def _size(what: str, index: Path) -> int:
    return sum(part.stat().st_size for part in _parts(what, index))
