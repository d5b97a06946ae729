"""The token store as its readers see it: rows of tokens from shards that may still be on their way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rewarm.data.integrity import DamagedShardError, Shards
from rewarm.data.layout import Shard, StoreSpec, completed_tokens
from rewarm.data.segments import Segments
from rewarm.errors import DataError, RewarmError

POLL_SECONDS = 0.02


class TokenRow(Protocol):
    """A long row of tokens to be read: a token store, or tokens that existed already."""

    folder: Path

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens that are there to be read."""
        ...

    @property
    def digest(self) -> str:
        """Return the name that tells these tokens from any other."""
        ...

    def stride(self, context: int) -> int:
        """Return how far apart sequences of `context` + 1 tokens begin."""
        ...

    def ensure(self, n_tokens: int) -> None:
        """Wait until `n_tokens` can be read, or there will be no more."""
        ...

    def gather(self, starts: NDArray[np.int64], length: int) -> NDArray[Any]:
        """Return the `length` tokens from each of `starts` on, of shape (n, length)."""
        ...

    def documents(self, until: int) -> Iterator[tuple[int, str, int]]:
        """Yield for each document of the first `until` tokens where it ends, its domain, and its bytes."""
        ...


class Filler(Protocol):
    """What fills a store while it is read."""

    @property
    def tokens(self) -> int:
        """Return the tokens made so far, those of the unfinished shard included."""
        ...

    @property
    def error(self) -> RewarmError | None:
        """Return what stopped it, if anything did."""
        ...

    def is_alive(self) -> bool:
        """Return whether more tokens may come."""
        ...

    def progress(self) -> str:
        """Return what a progress bar shows beside the tokens."""
        ...


class FilledElsewhere:
    """Another process of the run fills the store; should it fail, it takes this one along."""

    tokens = 0
    error = None

    def is_alive(self) -> bool:
        """Return True: whatever happens there ends this process too."""
        return True

    def progress(self) -> str:
        """Return nothing: only the other process knows."""
        return ""


def _bar(n_tokens: int, what: str) -> tqdm[Any]:
    return tqdm(total=n_tokens, unit="tok", unit_scale=True, desc=what, leave=False, delay=0.5, disable=None)


class TokenStore:
    """Reads a store, which may still be growing: `ensure` waits for tokens, `gather` returns them.

    Shards are taken note of as they are asked for, and only where they are what was written.
    """

    def __init__(self, folder: Path, spec: StoreSpec, filler: Filler | None = None) -> None:
        self.folder = folder
        self.spec = spec
        self.shards: list[Shard] = []
        self.complete = False
        """Whether all tokens that there will be are taken note of."""
        self._filler = filler
        self._files = Shards(folder, spec)
        self._segments = Segments(spec.dtype)
        self._damage: DamagedShardError | None = None

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens that are there to be read, of those asked for so far."""
        return self._segments.n_tokens

    @property
    def digest(self) -> str:
        """Return the name that tells this store from every other."""
        return self.spec.digest

    def stride(self, context: int) -> int:
        """Return `context`: the last token of a sequence is the next one's first, so each is predicted once."""
        return context

    def holds(self, n_tokens: int) -> bool:
        """Return whether `n_tokens` are there, or all that there will ever be, without waiting.

        Reads what was never read before, to see that it is what was written.
        """
        with _bar(n_tokens, "checking") as bar:
            return self._take(n_tokens, bar)

    def _take(self, n_tokens: int, bar: tqdm[Any] | None = None) -> bool:
        """Take note of committed shards up to `n_tokens`; return whether these, or all there will be, are there."""
        if self.complete or self.n_tokens >= n_tokens:
            return True
        complete = completed_tokens(self.folder)  # asked first: what is committed in between is then seen as well
        self._damage = None
        while self.n_tokens < n_tokens:
            try:
                shard = self._files.after(self.shards[-1] if self.shards else None)
            except DamagedShardError as damage:  # the reader waits for it to be made again
                self._damage = damage
                break
            if shard is None:
                break
            self.shards.append(shard)
            self._segments.append(shard.path(self.folder, "tokens"), shard.tokens)
            if bar is not None:
                bar.update(shard.tokens)
        # A store that lost its last shards has fewer than it was completed with.
        self.complete = complete == self.n_tokens
        return self.complete or self.n_tokens >= n_tokens

    def ensure(self, n_tokens: int) -> None:
        """Wait until `n_tokens` can be read, or the store is complete. Raises what stopped the filler."""
        if self._take(n_tokens):
            return
        with _bar(n_tokens, "writing" if self.spec.source.get("kind") == "self" else "tokenising") as bar:
            while True:
                # The filler is asked before the folder: what it did last must still be seen.
                filled = self._filler is not None and self._filler.is_alive()
                if self._take(n_tokens):
                    return
                if self._filler is None or not filled:
                    break
                bar.set_postfix_str(self._filler.progress(), refresh=False)
                bar.update(max(self._filler.tokens, self.n_tokens) - bar.n)
                time.sleep(POLL_SECONDS)
        raise (
            (self._filler.error if self._filler else None)
            or self._damage
            or DataError(f"{self.folder}: holds {self.n_tokens:,} tokens and nothing makes more")
        )

    def gather(self, starts: NDArray[np.int64], length: int) -> NDArray[Any]:
        """Return the `length` tokens from each of `starts` on, which must be there, of shape (n, length)."""
        return self._segments.gather(starts, length)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return the tokens from `start` to `stop`, which must be there."""
        return self._segments.read(start, stop)

    def documents(self, until: int | None = None) -> Iterator[tuple[int, str, int]]:
        """Yield for each document (of the first `until` tokens) where it ends, its domain, and its bytes."""
        for shard in self.shards:
            if until is not None and shard.start >= until:
                return
            names, path = shard.manifest["domain_names"], shard.path(self.folder, "documents")
            try:
                rows = np.fromfile(path, dtype="<i8").reshape(shard.manifest["documents"], 3)
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: changed while it was in use; rerun, and it is made again") from error
            for end, domain, n_bytes in rows.tolist():
                yield shard.start + end, names[domain], n_bytes
