"""The producer: fills a token store ahead of its readers, and goes on where another was killed."""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewarm.cache import exclusive, write_json
from rewarm.data.documents import Cursor, Document, Source
from rewarm.data.encoding import encoded
from rewarm.data.layout import COMPLETE, StoreSpec, committed, is_complete, shard_name
from rewarm.data.tokenizers import Tokenizer
from rewarm.errors import DataError, RewarmError


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

    def progress(self) -> str:
        """Return what a progress bar shows beside the tokens."""
        speed = self.n_bytes / 1e6 / max(1e-9, time.monotonic() - self._begun)
        return f"{self.n_documents:,} documents, {speed:.1f} MB/s"

    def run(self) -> None:
        """Fill the store; what goes wrong is kept for the reader."""
        try:
            with exclusive(self._folder / "lock", wait=True):
                self._fill()
        except RewarmError as error:
            self.error = error
        except OSError as error:
            self.error = DataError(f"{self._folder}: {error.strerror or error}; the store is intact, rerun to go on")
        except Exception as error:
            self.error = DataError(f"{self._folder}: tokenising failed: {type(error).__name__}: {error}")
            self.error.__cause__ = error

    def _fill(self) -> None:
        complete = is_complete(self._folder)  # another producer may have been here while we waited
        shards = list(committed(self._folder, self._spec))
        self.tokens = sum(shard.tokens for shard in shards)
        if complete or self.tokens >= self._until:
            return
        cursor = shards[-1].manifest["cursor"] if shards else None
        shard = _OpenShard(self._folder, self._spec, len(shards))
        with closing(encoded(self._source.documents(cursor), self._tokenizer, self._workers)) as stream:
            for ids, document, position in stream:
                left = None if self._spec.limit is None else self._spec.limit - self.tokens
                n_bytes = shard.add(ids, document, left)
                self.tokens += min(len(ids), left) if left is not None else len(ids)
                self.n_documents, self.n_bytes = self.n_documents + 1, self.n_bytes + n_bytes
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
        write_json(self._folder / COMPLETE, {"tokens": self.tokens})


class _OpenShard:
    """A shard in memory, until it is committed."""

    def __init__(self, folder: Path, spec: StoreSpec, number: int) -> None:
        self._folder, self._spec, self.number = folder, spec, number
        self._pieces: list[NDArray[Any]] = []
        self._documents: list[tuple[int, int, int]] = []
        self._domains: dict[str, int] = {}
        self.size = 0

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

    def commit(self, cursor: Cursor | None) -> None:
        """Write the shard durably; the manifest's rename makes it exist."""
        name = shard_name(self.number)
        rows = np.array(self._documents, dtype="<i8")
        for suffix, pieces in (("tokens", self._pieces), ("documents", [rows])):
            with (self._folder / f"{name}.{suffix}").open("wb") as file:
                for piece in pieces:
                    file.write(piece.data)
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
