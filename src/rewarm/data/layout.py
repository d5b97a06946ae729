"""What a token store is on disk: documents become token ids once, in immutable shards that any number of readers map.

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from rewarm.errors import DataError

FORMAT = 1
COMPLETE = "complete.json"


def shard_name(number: int) -> str:
    """Return how the names of a shard's files begin."""
    return f"shard-{number:05d}"


@dataclass(frozen=True)
class Shard:
    """A committed shard: its number, where it starts in the store, and its manifest."""

    number: int
    start: int
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return how the names of its files begin."""
        return shard_name(self.number)

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


def is_complete(folder: Path) -> bool:
    """Return whether a store will get no more shards."""
    return (folder / COMPLETE).is_file()


def committed(folder: Path, spec: StoreSpec, first: int = 0, start: int = 0) -> Iterator[Shard]:
    """Yield the shards of a store from number `first` on, which begins after `start` tokens.

    Raises `DataError` where a shard is not what its manifest says.
    """
    for number in count(first):
        manifest_path = folder / f"{shard_name(number)}.json"
        if not manifest_path.is_file():
            return
        shard = Shard(number, start, json.loads(manifest_path.read_text()))
        tokens_path = folder / f"{shard.name}.tokens"
        if tokens_path.stat().st_size != shard.tokens * spec.dtype.itemsize:
            raise DataError(f"{tokens_path}: has not the size that its manifest says; remove {folder}")
        yield shard
        start += shard.tokens
