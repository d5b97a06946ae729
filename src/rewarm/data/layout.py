"""What a token store is on disk: documents become token ids once, in immutable shards that any number of readers map.

A store is a folder. Its name is a digest of everything that its tokens depend on.

    store.json               what the tokens depend on: source, tokenizer, sizes
    shard-00000.tokens       token ids, uint16 or uint32, little-endian; an end-of-text token closes each document
    shard-00000.documents    int64 (n, 3): where each document ends in the shard, its domain's number, its bytes
    shard-00000.json         the shard's manifest, renamed into place last: what has none does not exist
    complete.json            how many tokens there are, once the source, or the asked-for length, is exhausted
    checked.jsonl            files that were found to be what was written, by inode, size and times (`integrity`)

A shard ends with a document, and its manifest holds the source's cursor after it. So a producer that was killed goes
on after the last shard, and the shards come out the same, byte for byte, however often it was killed. A manifest
holds the checksums of its files and of itself; manifests of the first version hold none.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewarm.data.documents import Cursor
from rewarm.errors import DataError
from rewarm.storage import fsync_dir, is_sealed, load_object, make_dir, sealed, set_aside, storing, write_json

log = logging.getLogger(__name__)

FORMAT = 1
COMPLETE = "complete.json"
PARTS = ("tokens", "documents")
"""The files of a shard beside its manifest."""
KEYS = {"tokens", "documents", "domain_names", "domains", "cursor"}
"""Keys of every shard's manifest."""
SEALED_KEYS = KEYS | {"store", "start", "checksums", "sha256"}
"""Keys of a shard's manifest since there are checksums."""


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

    @property
    def end(self) -> int:
        """Return where the next shard starts in the store."""
        return self.start + self.tokens

    @property
    def cursor(self) -> Cursor | None:
        """Return where the source stood after the shard's last document."""
        cursor: Cursor | None = self.manifest["cursor"]
        return cursor

    def path(self, folder: Path, suffix: str) -> Path:
        """Return one of the shard's files."""
        return shard_path(folder, self.number, suffix)


def shard_path(folder: Path, number: int, suffix: str) -> Path:
    """Return a file of a shard: its manifest (`json`) or one of `PARTS`."""
    return folder / f"shard-{number:05d}.{suffix}"


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


def store_folder(root: Path, spec: StoreSpec) -> Path:
    """Return the folder of the store of `spec` under `root`, made where there is none yet.

    A damaged `store.json` is set aside and written anew: the spec is known, and each shard says whose it is. Raises
    `DataError` where the folder holds a store of something else, as after it was copied or edited by hand, and
    `StorageError` where there is no room.
    """
    folder = make_dir(root / spec.digest, "REWARM_CACHE")
    description = folder / "store.json"
    wanted = json.loads(json.dumps(spec.as_json()))
    if description.is_file():
        held = load_object(description)
        if held is not None and is_sealed(held):
            held.pop("sha256")
        if held == wanted:
            return folder
        if held is not None and held.keys() == wanted.keys():
            key = next(key for key in wanted if held[key] != wanted[key])
            raise DataError(
                f"{folder}: was made with another {key} ({held[key]}, not {wanted[key]}); remove the folder"
            )
        log.warning("%s: is damaged; kept as %s, and written anew", description, set_aside(description))
    with storing(description):
        write_json(description, sealed(wanted))
        fsync_dir(root)
    return folder


def completed_tokens(folder: Path) -> int | None:
    """Return the tokens of a store that gets no more; None for one that may, or whose `complete.json` is damaged."""
    path = folder / COMPLETE
    held = load_object(path) if path.is_file() else None
    if held is None or not (held.keys() == {"tokens"} or (held.keys() == {"tokens", "sha256"} and is_sealed(held))):
        return None
    tokens = held["tokens"]
    return tokens if isinstance(tokens, int) else None
