"""The token store: documents become token ids once, in immutable shards that any number of readers map.

A store is a folder. Its name is a digest of everything that its tokens depend on.

    store.json               what the tokens depend on: source, tokenizer, sizes
    shard-00000.tokens       token ids, uint16 or uint32, little-endian; an end-of-text token closes each document
    shard-00000.documents    int64 (n, 3): where each document ends in the shard, its domain's number, its bytes
    shard-00000.json         the shard's manifest, renamed into place last: what has none does not exist
    complete.json            written when the source, or the asked-for length, is exhausted

A shard ends with a document, and its manifest holds the source's cursor after it. So a producer that was killed
goes on after the last shard, and the shards come out the same, byte for byte, however often it was killed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rewarm.cache import fsync_dir, make_dir, write_json
from rewarm.data.documents import Source
from rewarm.data.segments import Segments
from rewarm.data.tokenizers import Tokenizer
from rewarm.errors import DataError

if TYPE_CHECKING:
    from rewarm.data.producer import Producer

FORMAT = 1
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


@dataclass(frozen=True)
class Shard:
    """A committed shard: its number, where it starts in the store, and its manifest."""

    number: int
    start: int
    manifest: Mapping[str, Any]

    @property
    def tokens(self) -> int:
        """Return the number of tokens in the shard."""
        return int(self.manifest["tokens"])


@dataclass(frozen=True)
class StoreSpec:
    """What a store's tokens depend on. `limit` cuts the store to that many tokens exactly."""

    source: Mapping[str, Any]
    tokenizer: str
    end_of_text: int
    vocab_size: int
    shard_tokens: int
    limit: int | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the smallest token type that holds the vocabulary."""
        return np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")

    def as_json(self) -> dict[str, Any]:
        """Return the spec as `store.json` holds it."""
        return {
            "format": FORMAT,
            "source": dict(self.source),
            "tokenizer": self.tokenizer,
            "end_of_text": self.end_of_text,
            "dtype": self.dtype.name,
            "shard_tokens": self.shard_tokens,
            "limit": self.limit,
        }

    @property
    def digest(self) -> str:
        """Return the name that tells this store from every other."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()[:24]


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
        complete = (self.folder / "complete.json").is_file()
        while not self.complete:
            number = len(self.shards)
            manifest_path = self.folder / f"shard-{number:05d}.json"
            if not manifest_path.is_file():
                break
            shard = Shard(number, self.n_tokens, json.loads(manifest_path.read_text()))
            tokens_path = self.folder / f"shard-{number:05d}.tokens"
            if tokens_path.stat().st_size != shard.tokens * self.spec.dtype.itemsize:
                raise DataError(f"{tokens_path}: has not the size that its manifest says; remove {self.folder}")
            self.shards.append(shard)
            self._segments.append(tokens_path, shard.tokens)
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
            rows = np.fromfile(self.folder / f"shard-{shard.number:05d}.documents", dtype="<i8").reshape(-1, 3)
            for end, domain, n_bytes in rows.tolist():
                yield shard.start + end, names[domain], n_bytes

    def produce(self, source: Source, tokenizer: Tokenizer, until: int, workers: int = 0) -> None:
        """Start to fill the store up to `until` tokens in the background, unless they are there."""
        from rewarm.data.producer import Producer

        if not self.complete and self.n_tokens < until:
            self.producer = Producer(self.folder, self.spec, source, tokenizer, until, workers)
            self.producer.start()


def open_store(root: Path, spec: StoreSpec) -> TokenStore:
    """Return the store of `spec` under `root`, made where there is none yet.

    Raises `DataError` where the folder holds a store of something else, as after it was copied or edited by hand.
    """
    folder = make_dir(root / spec.digest, "REWARM_CACHE")
    description = folder / "store.json"
    if not description.is_file():
        write_json(description, spec.as_json())
        fsync_dir(root)
    held, wanted = json.loads(description.read_text()), json.loads(json.dumps(spec.as_json()))
    for key, value in wanted.items():
        if held.get(key) != value:
            raise DataError(
                f"{folder}: was made with another {key} ({held.get(key)}, not {value}); remove the folder"
            )
    return TokenStore(folder, spec)
