"""A long row of tokens that lies in several files, read at any place without reading the rest."""

from __future__ import annotations

import functools
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewarm.errors import DataError

Ids = NDArray[np.unsignedinteger[Any]]
OPEN_FILES = 128
"""Files mapped at once: a store may have more of them than a process may hold open."""


class Segments:
    """Files of token ids, one after the other."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._paths: list[Path] = []
        self._ends: list[int] = []
        self._starts = np.zeros(0, dtype=np.int64)
        self._map = functools.lru_cache(maxsize=OPEN_FILES)(self._open)

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens in all files."""
        return self._ends[-1] if self._ends else 0

    def append(self, path: Path, tokens: int) -> None:
        """Add a file of so many tokens at the end."""
        self._paths.append(path)
        self._ends.append(self.n_tokens + tokens)

    def _open(self, number: int) -> NDArray[Any]:
        path, start = self._paths[number], self._ends[number - 1] if number else 0
        tokens = self._ends[number] - start
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), tokens * self._dtype.itemsize, access=mmap.ACCESS_READ)
            return np.frombuffer(mapped, dtype=self._dtype)
        except (OSError, ValueError) as error:  # ValueError: it is shorter than that by now
            raise DataError(f"{path}: changed while it was in use ({error}); rerun to read it anew") from error

    def _numbers(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the file in which each of these tokens lies."""
        if len(self._starts) != len(self._ends):
            self._starts = np.array([0, *self._ends[:-1]], dtype=np.int64)
        return np.searchsorted(self._starts, tokens, side="right") - 1

    def gather(self, starts: NDArray[np.int64], length: int) -> NDArray[Any]:
        """Return the `length` tokens from each of `starts` on, of shape (n, length)."""
        assert len(starts) == 0 or 0 <= starts.min() <= starts.max() + length <= self.n_tokens, (starts, length)
        out = np.empty((len(starts), length), dtype=self._dtype)
        first, last = self._numbers(starts), self._numbers(starts + length - 1)
        for row, (start, number, last_number) in enumerate(
            zip(starts.tolist(), first.tolist(), last.tolist(), strict=True)
        ):
            at = 0
            for n in range(number, last_number + 1):
                offset = start + at - int(self._starts[n])
                piece = self._map(n)[offset : offset + length - at]
                out[row, at : at + len(piece)] = piece
                at += len(piece)
        return out

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return the tokens from `start` to `stop`."""
        row: NDArray[Any] = self.gather(np.array([start], dtype=np.int64), stop - start)[0]
        return row
