"""The token store: reads shards of token ids, which may still be on their way, and sets going what makes them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rewarm.cache import fsync_dir, make_dir, storing, write_json
from rewarm.data.documents import Source
from rewarm.data.layout import Shard, StoreSpec, committed, is_complete
from rewarm.data.producer import Producer
from rewarm.data.segments import Segments
from rewarm.data.tokenizers import Tokenizer
from rewarm.errors import DataError

POLL_SECONDS = 0.02


class Tokens(Protocol):
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


class TokenStore:
    """Reads a store, which may still be growing: `ensure` waits for tokens, `gather` returns them."""

    def __init__(self, folder: Path, spec: StoreSpec) -> None:
        self.folder = folder
        self.spec = spec
        self.shards: list[Shard] = []
        self.complete = False
        self._segments = Segments(spec.dtype)
        self.producer: Producer | None = None
        self.filled_elsewhere = False
        """Whether another process of the run fills the store; should it fail, it takes this one along."""
        self.refresh()

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens that are there to be read."""
        return self._segments.n_tokens

    @property
    def digest(self) -> str:
        """Return the name that tells this store from every other."""
        return self.spec.digest

    def stride(self, context: int) -> int:
        """Return `context`: the last token of a sequence is the next one's first, so each is predicted once."""
        return context

    def refresh(self) -> None:
        """Take note of shards that were committed since the last look."""
        if self.complete:
            return
        complete = is_complete(self.folder)  # asked first: what is committed in between is then seen as well
        for shard in committed(self.folder, self.spec, len(self.shards), self.n_tokens):
            self.shards.append(shard)
            self._segments.append(self.folder / f"{shard.name}.tokens", shard.tokens)
        self.complete = complete

    def ensure(self, n_tokens: int) -> None:
        """Wait until `n_tokens` can be read, or the store is complete. Raises what stopped the producer."""
        if self.n_tokens >= n_tokens or self.complete:
            return
        with tqdm(
            total=n_tokens, unit="tok", unit_scale=True, desc="tokenising", leave=False, delay=0.5, disable=None
        ) as bar:
            while True:
                # The producer is asked before the folder: what it did last must still be seen.
                stopped = not self.filled_elsewhere and (self.producer is None or not self.producer.is_alive())
                self.refresh()
                if self.n_tokens >= n_tokens or self.complete:
                    return
                if stopped:
                    raise (
                        self.producer.error
                        if self.producer and self.producer.error
                        else DataError(f"{self.folder}: holds {self.n_tokens:,} tokens and nothing makes more")
                    )
                if self.producer is None:
                    time.sleep(POLL_SECONDS)
                    continue
                bar.set_postfix_str(self.producer.progress(), refresh=False)
                bar.update(max(self.producer.tokens, self.n_tokens) - bar.n)
                self.producer.join(POLL_SECONDS)

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
            names = shard.manifest["domain_names"]
            rows = np.fromfile(self.folder / f"{shard.name}.documents", dtype="<i8").reshape(-1, 3)
            for end, domain, n_bytes in rows.tolist():
                yield shard.start + end, names[domain], n_bytes

    def produce(self, source: Source, tokenizer: Tokenizer, until: int, workers: int = 0) -> None:
        """Start to fill the store up to `until` tokens in the background, unless they are there."""
        if not self.complete and self.n_tokens < until:
            self.producer = Producer(self.folder, self.spec, source, tokenizer, until, workers)
            self.producer.start()


def open_store(root: Path, spec: StoreSpec) -> TokenStore:
    """Return the store of `spec` under `root`, made where there is none yet.

    Raises `DataError` where the folder holds a store of something else, as after it was copied or edited by hand, and
    `StorageError` where there is no room for one.
    """
    folder = make_dir(root / spec.digest, "REWARM_CACHE")
    description = folder / "store.json"
    if not description.is_file():
        with storing(description):
            write_json(description, spec.as_json())
            fsync_dir(root)
    held, wanted = json.loads(description.read_text()), json.loads(json.dumps(spec.as_json()))
    for key, value in wanted.items():
        if held.get(key) != value:
            raise DataError(
                f"{folder}: was made with another {key} ({held.get(key)}, not {value}); remove the folder"
            )
    return TokenStore(folder, spec)
