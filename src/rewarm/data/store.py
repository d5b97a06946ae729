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
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rewarm.cache import exclusive, fsync_dir, make_dir, write_json
from rewarm.data.documents import Cursor, Document, Source
from rewarm.data.tokenizers import Tokenizer
from rewarm.errors import DataError

FORMAT = 1
BATCH_CHARACTERS = 1_000_000
POLL_SECONDS = 0.02


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
    """Reads a store, which may still be growing: `ensure` waits for tokens, `read` returns them."""

    def __init__(self, folder: Path, spec: StoreSpec) -> None:
        self.folder = folder
        self.spec = spec
        self.shards: list[Shard] = []
        self.complete = False
        self._maps: list[NDArray[Any]] = []
        self._starts = np.zeros(1, dtype=np.int64)
        self.producer: Producer | None = None
        self.refresh()

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens that are there to be read."""
        return int(self._starts[-1])

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
            self._maps.append(np.memmap(tokens_path, dtype=self.spec.dtype, mode="r"))
            self.shards.append(shard)
            self._starts = np.append(self._starts, shard.start + shard.tokens)
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
                stopped = self.producer is None or not self.producer.is_alive()
                self.refresh()
                if self.n_tokens >= n_tokens or self.complete:
                    return
                if stopped:
                    raise (
                        self.producer.error
                        if self.producer and self.producer.error
                        else DataError(f"{self.folder}: holds {self.n_tokens:,} tokens and nothing makes more")
                    )
                assert self.producer is not None
                bar.update(self.producer.tokens - bar.n)
                self.producer.join(POLL_SECONDS)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return the tokens from `start` to `stop`, which must be there."""
        assert 0 <= start <= stop <= self.n_tokens, (start, stop, self.n_tokens)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        pieces = []
        while start < stop:
            offset = start - int(self._starts[first])
            piece = self._maps[first][offset : offset + stop - start]
            pieces.append(piece)
            start += len(piece)
            first += 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [np.empty(0, self.spec.dtype)])

    def documents(self) -> Iterator[tuple[int, str, int]]:
        """Yield for each document where it ends in the store, its domain, and its bytes."""
        for shard in self.shards:
            names = shard.manifest["domain_names"]
            rows = np.fromfile(self.folder / f"shard-{shard.number:05d}.documents", dtype="<i8").reshape(-1, 3)
            for end, domain, n_bytes in rows.tolist():
                yield shard.start + end, names[domain], n_bytes

    def produce(self, source: Source, tokenizer: Tokenizer, until: int) -> None:
        """Start to fill the store up to `until` tokens in the background, unless they are there."""
        if not self.complete and self.n_tokens < until:
            self.producer = Producer(self.folder, self.spec, source, tokenizer, until)
            self.producer.start()


class Producer(threading.Thread):
    """Fills a store ahead of its readers. Only the owner of the store's lock writes; others wait for it."""

    def __init__(self, folder: Path, spec: StoreSpec, source: Source, tokenizer: Tokenizer, until: int) -> None:
        super().__init__(name=f"producer-{spec.digest}", daemon=True)
        self._folder, self._spec, self._source, self._tokenizer = folder, spec, source, tokenizer
        self._until = until
        self.tokens = 0
        """Tokens made so far, those of the unfinished shard included."""
        self.error: DataError | None = None

    def run(self) -> None:
        """Fill the store; what goes wrong is kept for the reader."""
        try:
            with exclusive(self._folder / "lock", wait=True):
                self._fill()
        except DataError as error:
            self.error = error
        except OSError as error:
            self.error = DataError(f"{self._folder}: {error.strerror or error}; the store is intact, rerun to go on")
        except Exception as error:
            self.error = DataError(f"{self._folder}: tokenising failed: {type(error).__name__}: {error}")
            self.error.__cause__ = error

    def _fill(self) -> None:
        store = TokenStore(self._folder, self._spec)  # another producer may have been here while we waited
        if store.complete or store.n_tokens >= self._until:
            return
        cursor = store.shards[-1].manifest["cursor"] if store.shards else None
        shard = _OpenShard(self._folder, self._spec, len(store.shards))
        self.tokens = store.n_tokens
        for ids, document, position in self._encoded(cursor):
            left = None if self._spec.limit is None else self._spec.limit - self.tokens
            shard.add(ids, document, left)
            self.tokens += min(len(ids), left) if left is not None else len(ids)
            finished = left is not None and self.tokens >= (self._spec.limit or 0)
            if shard.size >= self._spec.shard_tokens or finished:
                shard.commit(position)
                shard = _OpenShard(self._folder, self._spec, shard.number + 1)
                if finished:
                    break
                if self.tokens >= self._until:
                    return
            cursor = position
        if shard.size:
            shard.commit(cursor)
        write_json(self._folder / "complete.json", {"tokens": self.tokens})

    def _encoded(self, cursor: Cursor | None) -> Iterator[tuple[list[int], Document, Cursor]]:
        """Yield each document's ids, closed by end-of-text; many texts are tokenised at once."""
        batch: list[tuple[Document, Cursor]] = []
        characters = 0

        def flush() -> Iterator[tuple[list[int], Document, Cursor]]:
            ids = self._tokenizer.encode([document.text for document, _ in batch])
            for row, (document, position) in zip(ids, batch, strict=True):
                row.append(self._spec.end_of_text)
                yield row, document, position

        for document, position in self._source.documents(cursor):
            batch.append((document, position))
            characters += len(document.text)
            if characters >= BATCH_CHARACTERS:
                yield from flush()
                batch.clear()
                characters = 0
        yield from flush()


class _OpenShard:
    """A shard in memory, until it is committed."""

    def __init__(self, folder: Path, spec: StoreSpec, number: int) -> None:
        self._folder, self._spec, self.number = folder, spec, number
        self._pieces: list[NDArray[Any]] = []
        self._documents: list[tuple[int, int, int]] = []
        self._domains: dict[str, int] = {}
        self.size = 0

    def add(self, ids: list[int], document: Document, left: int | None) -> None:
        """Append a document, or its first `left` tokens; a cut document keeps its share of its bytes."""
        n_bytes = len(document.text.encode("utf-8", "surrogatepass"))
        if left is not None and left < len(ids):
            n_bytes = round(n_bytes * left / len(ids))
            ids = ids[:left]
        self._pieces.append(np.array(ids, dtype=self._spec.dtype))
        self.size += len(ids)
        domain = self._domains.setdefault(document.domain, len(self._domains))
        self._documents.append((self.size, domain, n_bytes))

    def commit(self, cursor: Cursor | None) -> None:
        """Write the shard durably; the manifest's rename makes it exist."""
        name = f"shard-{self.number:05d}"
        rows = np.array(self._documents, dtype="<i8")
        for suffix, array in (("tokens", np.concatenate(self._pieces)), ("documents", rows)):
            with (self._folder / f"{name}.{suffix}").open("wb") as file:
                file.write(array.tobytes())
                file.flush()
                os.fsync(file.fileno())
        lengths = np.diff(rows[:, 0], prepend=0)
        counts = {
            domain: {
                "documents": int((rows[:, 1] == number).sum()),
                "tokens": int(lengths[rows[:, 1] == number].sum()),
                "bytes": int(rows[rows[:, 1] == number, 2].sum()),
            }
            for domain, number in self._domains.items()
        }
        manifest = {
            "tokens": self.size,
            "documents": len(rows),
            "domain_names": list(self._domains),
            "domains": counts,
            "cursor": None if cursor is None else dict(cursor),
        }
        write_json(self._folder / f"{name}.json", manifest)


def open_store(root: Path, spec: StoreSpec) -> TokenStore:
    """Return the store of `spec` under `root`, made where there is none yet."""
    folder = make_dir(root / spec.digest, "REWARM_CACHE")
    description = folder / "store.json"
    if not description.is_file():
        write_json(description, spec.as_json())
        fsync_dir(root)
    return TokenStore(folder, spec)
