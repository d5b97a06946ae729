"""The producer: fills a token store ahead of its readers, and goes on where another was killed."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewarm.data.documents import Cursor, Document, Source
from rewarm.data.encoding import BATCH_CHARACTERS, encoded
from rewarm.data.integrity import DamagedShardError, Shards
from rewarm.data.layout import (
    COMPLETE,
    PARTS,
    Shard,
    StoreSpec,
    completed_tokens,
    shard_path,
    store_folder,
)
from rewarm.data.store import TokenStore
from rewarm.data.tokenizers import Tokenizer
from rewarm.errors import DataError, RewarmError
from rewarm.storage import exclusive, load_object, sealed, set_aside, write_durably, write_json

log = logging.getLogger(__name__)


def fill_store(
    root: Path, spec: StoreSpec, source: Source, tokenizer: Tokenizer, until: int, workers: int = 0
) -> TokenStore:
    """Return the store of `spec` under `root`; where it has fewer than `until` tokens, start to fill it."""
    folder = store_folder(root, spec)
    producer = Producer(folder, spec, source, tokenizer, until, workers)
    store = TokenStore(folder, spec, producer)
    if not store.holds(until):
        producer.start()
    return store


class Producer(threading.Thread):
    """Fills a store in the background. Only the owner of the store's lock writes; others wait for it."""

    def __init__(
        self, folder: Path, spec: StoreSpec, source: Source, tokenizer: Tokenizer, until: int, workers: int = 0
    ) -> None:
        super().__init__(name=f"producer-{spec.digest}", daemon=True)
        self._folder, self._spec, self._source, self._tokenizer = folder, spec, source, tokenizer
        self._until, self._workers = until, workers
        self._begun = time.monotonic()
        self.tokens = 0
        """Tokens made so far, those of the unfinished shard included."""
        self.n_documents = 0
        self.n_bytes = 0
        """Documents and bytes of text that this producer has tokenised."""
        self.error: RewarmError | None = None
        self._made: set[int] = set()
        """Numbers of the shards that this producer has written."""

    def progress(self) -> str:
        """Return what a progress bar shows beside the tokens."""
        speed = self.n_bytes / 1e6 / max(1e-9, time.monotonic() - self._begun)
        return f"{self.n_documents:,} documents, {speed:.1f} MB/s"

    def run(self) -> None:
        """Fill the store; what goes wrong is kept for the reader."""
        try:
            with exclusive(self._folder / "lock", wait=True):
                for left_by_killed in self._folder.glob(".shard-*.tmp"):
                    left_by_killed.unlink(missing_ok=True)
                self._fill()
        except RewarmError as error:
            self.error = error
        except OSError as error:
            self.error = DataError(f"{self._folder}: {error.strerror or error}; the store is intact, rerun to go on")
        except Exception as error:
            self.error = DataError(f"{self._folder}: tokenising failed: {type(error).__name__}: {error}")
            self.error.__cause__ = error

    def _fill(self) -> None:
        """Fill the store's gaps, where shards were damaged or lost, and then its end."""
        shards = Shards(self._folder, self._spec)
        last: Shard | None = None
        while True:
            last = self._last_whole(shards, last)
            self.tokens = last.end if last else 0
            if self.tokens >= self._until or completed_tokens(self._folder) == self.tokens:
                return  # another producer may have been here while we waited for the lock
            if self._extend(last):
                return

    def _last_whole(self, shards: Shards, last: Shard | None) -> Shard | None:
        """Return the last shard that is needed, or is before a missing or damaged one; set the damaged one aside."""
        try:
            while (last.end if last else 0) < self._until and (shard := shards.after(last)) is not None:
                last = shard
        except DamagedShardError as damage:
            if (last.number + 1 if last else 0) in self._made:
                raise DataError(f"{damage}; it was written a moment ago: check the disk, and rerun") from damage
            kept = ", ".join(set_aside(path) for path in damage.files if path.exists()) or "nothing"
            log.warning("%s; the shard is made again from its source (%s is kept)", damage, kept)
        return last

    def _extend(self, last: Shard | None) -> bool:
        """Make shards after `last`; return False before one that is there already, where a gap ends."""
        cursor = last.cursor if last else None
        shard = _OpenShard(self._folder, self._spec, last)
        limit = self._spec.limit
        at_once = min(BATCH_CHARACTERS, self._spec.shard_tokens)
        documents = self._source.documents(cursor)
        with closing(encoded(documents, self._tokenizer, self._workers, at_once)) as stream:
            while self.tokens != limit and (row := next(stream, None)) is not None:
                ids, document, cursor = row
                left = None if limit is None else limit - self.tokens
                n_bytes = shard.add(ids, document, left)
                self.tokens += min(len(ids), left) if left is not None else len(ids)
                self.n_documents, self.n_bytes = self.n_documents + 1, self.n_bytes + n_bytes
                if shard.size >= self._spec.shard_tokens:
                    last = shard.commit(cursor)
                    self._made.add(last.number)
                    shard = _OpenShard(self._folder, self._spec, last)
                    if shard.path("json").exists():
                        return False
                    if self._until <= self.tokens != limit:
                        return True
        if shard.size:
            shard.commit(cursor)
        path = self._folder / COMPLETE
        if completed_tokens(self._folder) != self.tokens:
            if path.exists():
                log.warning("%s: is wrong or damaged; kept as %s, and written anew", path, set_aside(path))
            write_json(path, sealed({"tokens": self.tokens}))
        return True


class _OpenShard:
    """A shard in memory, until it is committed."""

    def __init__(self, folder: Path, spec: StoreSpec, last: Shard | None) -> None:
        self._folder, self._spec = folder, spec
        self._number, self._start = (last.number + 1, last.end) if last else (0, 0)
        self._pieces: list[NDArray[Any]] = []
        self._documents: list[tuple[int, int, int]] = []
        self._domains: dict[str, int] = {}
        self.size = 0

    def path(self, suffix: str) -> Path:
        """Return where one of the shard's files lies once it is committed."""
        return shard_path(self._folder, self._number, suffix)

    def add(self, ids: NDArray[Any], document: Document, left: int | None) -> int:
        """Append a document, or its first `left` tokens, and return its bytes; a cut one keeps its share of them."""
        n_bytes = len(document.text.encode("utf-8", "surrogatepass"))
        if left is not None and left < len(ids):
            n_bytes = round(n_bytes * left / len(ids))
            ids = ids[:left]
        self._pieces.append(ids.astype(self._spec.dtype))
        self.size += len(ids)
        domain = self._domains.setdefault(document.domain, len(self._domains))
        self._documents.append((self.size, domain, n_bytes))
        return n_bytes

    def commit(self, cursor: Cursor | None) -> Shard:
        """Write the shard durably; the manifest's rename makes it exist."""
        rows = np.array(self._documents, dtype="<i8")
        parts = dict(zip(PARTS, (np.concatenate(self._pieces), rows), strict=True))
        manifest = sealed(
            {
                "tokens": self.size,
                "documents": len(rows),
                "domain_names": list(self._domains),
                "domains": self._counts(rows),
                "cursor": None if cursor is None else dict(cursor),
                "store": self._spec.digest,
                "start": self._start,
                "checksums": {part: hashlib.sha256(array.data).hexdigest() for part, array in parts.items()},
            }
        )
        self._check_as_before(manifest)
        for part, array in parts.items():
            write_durably(self.path(part), array.data)
        write_json(self.path("json"), manifest)
        return Shard(self._number, self._start, manifest)

    def _counts(self, rows: NDArray[np.int64]) -> dict[str, dict[str, int]]:
        """Return documents, tokens and bytes of each domain."""
        lengths = np.diff(rows[:, 0], prepend=0)
        return {
            domain: {
                "documents": int((rows[:, 1] == number).sum()),
                "tokens": int(lengths[rows[:, 1] == number].sum()),
                "bytes": int(rows[rows[:, 1] == number, 2].sum()),
            }
            for domain, number in self._domains.items()
        }

    def _check_as_before(self, manifest: dict[str, Any]) -> None:
        """Raise `DataError` where a shard whose manifest is left does not become again what it was."""
        path = self.path("json")
        before = load_object(path) if path.exists() else None
        now = json.loads(json.dumps(manifest))
        shared = before.keys() & now.keys() - {"sha256"} if before else ()
        if before and any(before[key] != now[key] for key in shared):
            raise DataError(
                f"{path}: the source no longer gives the text that it gave for this shard; put the source back, or "
                f"remove {self._folder} to tokenise anew"
            )
